/* native/device.h declares what of the driver's interface is needed: see layout.c. */
#include <cuda.h>

#include "../../native/device.c"

_Static_assert(sizeof(struct memory_properties) == sizeof(CUmemAllocationProp) &&
                   offsetof(struct memory_properties, handle_types) ==
                       offsetof(CUmemAllocationProp, requestedHandleTypes) &&
                   offsetof(struct memory_properties, location) ==
                       offsetof(CUmemAllocationProp, location),
               "CUmemAllocationProp");
_Static_assert(sizeof(struct memory_access) == sizeof(CUmemAccessDesc) &&
                   offsetof(struct memory_access, flags) == offsetof(CUmemAccessDesc, flags),
               "CUmemAccessDesc");
_Static_assert(sizeof(struct memory_location) == sizeof(CUmemLocation) &&
                   offsetof(struct memory_location, id) == offsetof(CUmemLocation, id),
               "CUmemLocation");
_Static_assert(sizeof(CUdevice) == sizeof(int) && sizeof(CUdeviceptr) == sizeof(uint64_t) &&
                   sizeof(CUmemGenericAllocationHandle) == sizeof(uint64_t) &&
                   sizeof(CUuuid) == 16,
               "handles");
#define IS(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)

IS(PINNED, CU_MEM_ALLOCATION_TYPE_PINNED);
IS(ON_GPU, CU_MEM_LOCATION_TYPE_DEVICE);
IS(DESCRIPTOR, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
IS(READ_WRITE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
IS(NOT_BLOCKING, CU_STREAM_NON_BLOCKING);
IS(PORTABLE, CU_MEMHOSTREGISTER_PORTABLE);
IS(SLEEPING, CU_EVENT_BLOCKING_SYNC);
IS(WITHOUT_TIME, CU_EVENT_DISABLE_TIMING);

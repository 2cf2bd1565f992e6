/* native/cuda.c declares what of the driver's interface it needs: compared with a real cuda.h. */
#include <cuda.h>

#include "../../native/cuda.c"

#define SAME(ours, member, theirs, name)                                                        \
    _Static_assert(offsetof(struct ours, member) == offsetof(theirs, name) &&                   \
                       sizeof(((struct ours *)NULL)->member) == sizeof(((theirs *)NULL)->name), \
                   #theirs "." #name)

_Static_assert(sizeof(CUresult) == sizeof(int) && sizeof(CUprocessState) == sizeof(int), "enums");
_Static_assert(CU_PROCESS_STATE_RUNNING == 0 && CU_PROCESS_STATE_LOCKED == 1 &&
                   CU_PROCESS_STATE_CHECKPOINTED == 2 && CU_PROCESS_STATE_FAILED == 3,
               "CUprocessState");
_Static_assert(sizeof(struct lock_args) == sizeof(CUcheckpointLockArgs), "lock");
_Static_assert(sizeof(struct checkpoint_args) == sizeof(CUcheckpointCheckpointArgs), "checkpoint");
_Static_assert(sizeof(struct restore_args) == sizeof(CUcheckpointRestoreArgs), "restore");
_Static_assert(sizeof(struct unlock_args) == sizeof(CUcheckpointUnlockArgs), "unlock");
SAME(lock_args, milliseconds, CUcheckpointLockArgs, timeoutMs);

#if CUDA_VERSION >= 13000
_Static_assert(sizeof(struct thaw_cuda_pair) == sizeof(CUcheckpointGpuPair), "pair");
SAME(thaw_cuda_pair, before, CUcheckpointGpuPair, oldUuid);
SAME(thaw_cuda_pair, after, CUcheckpointGpuPair, newUuid);
SAME(restore_args, pairs, CUcheckpointRestoreArgs, gpuPairs);
SAME(restore_args, count, CUcheckpointRestoreArgs, gpuPairsCount);
#endif

#if CUDA_VERSION >= 13040
_Static_assert(CU_PROCESS_STATE_CHECKPOINTING == 4 && CU_PROCESS_STATE_RESTORING == 5, "states");
_Static_assert(sizeof(struct storage_info) == sizeof(CUcheckpointCustomStorageInfo), "storage");
_Static_assert(sizeof(struct thaw_cuda_mapping) == sizeof(CUcheckpointCustomStoragePerDeviceData),
               "mapping");
SAME(storage_info, handle, CUcheckpointCustomStorageInfo, handle);
SAME(storage_info, mappings, CUcheckpointCustomStorageInfo, perDeviceData);
SAME(storage_info, count, CUcheckpointCustomStorageInfo, deviceCount);
SAME(thaw_cuda_mapping, address, CUcheckpointCustomStoragePerDeviceData, devPtr);
SAME(thaw_cuda_mapping, size, CUcheckpointCustomStoragePerDeviceData, size);
SAME(thaw_cuda_mapping, stream, CUcheckpointCustomStoragePerDeviceData, stream);
SAME(checkpoint_args, storage, CUcheckpointCheckpointArgs, customStorageInfo_out);
SAME(restore_args, storage, CUcheckpointRestoreArgs, customStorageInfo_out);
#endif

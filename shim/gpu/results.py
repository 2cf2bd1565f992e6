"""What the CUDA driver can answer: number, name, one sentence, and what to do about it.

All of CUresult as cuda.h of CUDA 13.5 numbers it; older drivers know some of them not. Most can
only come from calls that Thaw never makes. They are here because a failure of the *process* that is
checkpointed may come back as the answer to us, and a number alone helps nobody.
"""

from __future__ import annotations

from typing import NamedTuple

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
OPERATING_SYSTEM = 304
ILLEGAL_STATE = 401
NOT_READY = 600
NOT_PERMITTED = 800
NOT_SUPPORTED = 801
TIMEOUT = 909


class Result(NamedTuple):
    """A CUresult in words. The sentence is lower case, without a full stop; the hint may be ""."""

    name: str
    sentence: str
    hint: str = ""


_RESTART = "the worker's CUDA state is lost: restart it"
_UPDATE = "install a newer NVIDIA driver"
_RELOAD = "look for Xid messages in the kernel's log, and reset or drain the GPU"
_DRIVER = "reload the NVIDIA kernel modules or restart the node, so that driver and libraries match"
_MPS = "look at the MPS control daemon's log; without MPS the worker needs no server"
_FABRIC = "look whether nvidia-fabricmanager runs (systemctl status nvidia-fabricmanager)"

RESULTS: dict[int, Result] = {
    0: Result("CUDA_SUCCESS", "all went well"),
    1: Result(
        "CUDA_ERROR_INVALID_VALUE",
        "an argument is not acceptable, or the process does not use CUDA",
        "is it a process of this pid namespace that has initialized CUDA, and still alive?",
    ),
    2: Result(
        "CUDA_ERROR_OUT_OF_MEMORY",
        "there is not enough free memory, on the GPU or on the host",
        "nvidia-smi shows who uses the GPU, free -h what the host has",
    ),
    3: Result(
        "CUDA_ERROR_NOT_INITIALIZED",
        "CUDA is not initialized, here or in the process",
        "wait until the worker has made its first CUDA call",
    ),
    4: Result("CUDA_ERROR_DEINITIALIZED", "the CUDA driver is shutting down, the process ends"),
    5: Result("CUDA_ERROR_PROFILER_DISABLED", "an external profiler has switched this one off"),
    6: Result("CUDA_ERROR_PROFILER_NOT_INITIALIZED", "no profiler has been set up"),
    7: Result("CUDA_ERROR_PROFILER_ALREADY_STARTED", "the profiler runs already"),
    8: Result("CUDA_ERROR_PROFILER_ALREADY_STOPPED", "the profiler has been stopped already"),
    34: Result(
        "CUDA_ERROR_STUB_LIBRARY",
        "the library is the toolkit's stub, which is for linking only",
        "take the folder of stubs out of LD_LIBRARY_PATH: the driver's own libcuda.so.1 is needed",
    ),
    36: Result(
        "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
        "the installed driver is too old for this call",
        _UPDATE,
    ),
    46: Result(
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "the GPU cannot be had now: another process has it for itself, or nobody may compute on it",
        "look at its compute mode: nvidia-smi -q -d COMPUTE",
    ),
    47: Result(
        "CUDA_ERROR_MULTICAST_RESOURCE_FULL",
        "the hardware has no room for another multicast binding",
        "switch NVLink multicast off in the worker: NCCL_NVLS_ENABLE=0",
    ),
    100: Result(
        "CUDA_ERROR_NO_DEVICE",
        "the driver finds no GPU",
        "nvidia-smi -L lists them; CUDA_VISIBLE_DEVICES may hide them",
    ),
    101: Result(
        "CUDA_ERROR_INVALID_DEVICE",
        "there is no GPU of that number, or it cannot do this",
        "has the pod the GPUs that the snapshot was made with?",
    ),
    102: Result(
        "CUDA_ERROR_DEVICE_NOT_LICENSED",
        "the virtual GPU has no licence",
        "look at the licence server: nvidia-smi -q",
    ),
    200: Result("CUDA_ERROR_INVALID_IMAGE", "a kernel image or module is damaged"),
    201: Result(
        "CUDA_ERROR_INVALID_CONTEXT",
        "there is no valid CUDA context for this",
    ),
    202: Result("CUDA_ERROR_CONTEXT_ALREADY_CURRENT", "the context is the current one already"),
    205: Result("CUDA_ERROR_MAP_FAILED", "memory could not be mapped"),
    206: Result("CUDA_ERROR_UNMAP_FAILED", "memory could not be unmapped"),
    207: Result("CUDA_ERROR_ARRAY_IS_MAPPED", "the array is mapped and cannot be destroyed"),
    208: Result("CUDA_ERROR_ALREADY_MAPPED", "the resource is mapped already"),
    209: Result(
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "the program has no code for this kind of GPU",
        "restore on the model of GPU that the snapshot was made on",
    ),
    210: Result("CUDA_ERROR_ALREADY_ACQUIRED", "the resource is taken already"),
    211: Result("CUDA_ERROR_NOT_MAPPED", "the resource is not mapped"),
    212: Result("CUDA_ERROR_NOT_MAPPED_AS_ARRAY", "the resource is not mapped as an array"),
    213: Result("CUDA_ERROR_NOT_MAPPED_AS_POINTER", "the resource is not mapped as a pointer"),
    214: Result(
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "GPU memory had an error that could not be corrected",
        _RELOAD,
    ),
    215: Result("CUDA_ERROR_UNSUPPORTED_LIMIT", "the GPU does not know this limit"),
    216: Result("CUDA_ERROR_CONTEXT_ALREADY_IN_USE", "another thread has the context"),
    217: Result(
        "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
        "these GPUs cannot reach each other's memory",
        "are they joined as those were that the snapshot was made on (nvidia-smi topo -m)?",
    ),
    218: Result("CUDA_ERROR_INVALID_PTX", "intermediate code could not be compiled"),
    219: Result("CUDA_ERROR_INVALID_GRAPHICS_CONTEXT", "an OpenGL or DirectX context failed"),
    220: Result(
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "NVLink had an error that could not be corrected",
        _RELOAD,
    ),
    221: Result(
        "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        "the driver's compiler library is missing",
        "install libnvidia-ptxjitcompiler of the same version as the driver",
    ),
    222: Result(
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "intermediate code is of a newer toolchain than the driver knows",
        _UPDATE,
    ),
    223: Result("CUDA_ERROR_JIT_COMPILATION_DISABLED", "compiling at run time is switched off"),
    224: Result("CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY", "the GPU cannot be divided like this"),
    225: Result(
        "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC",
        "code waits on the GPU for the GPU, which is supported no longer",
    ),
    226: Result(
        "CUDA_ERROR_CONTAINED",
        "the GPU has contained an error, and the process can use CUDA no longer",
        _RESTART,
    ),
    227: Result(
        "CUDA_ERROR_INSUFFICIENT_LOADER_VERSION",
        "the loader is too old for the program's GPU code",
        _UPDATE,
    ),
    300: Result("CUDA_ERROR_INVALID_SOURCE", "a kernel's source is wrong"),
    301: Result("CUDA_ERROR_FILE_NOT_FOUND", "a file is missing"),
    302: Result("CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "a shared object lacks a symbol"),
    303: Result("CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "a shared object could not be set up"),
    304: Result(
        "CUDA_ERROR_OPERATING_SYSTEM",
        "a call of the operating system failed",
        "has the process ended meanwhile? Thaw needs CAP_SYS_PTRACE and the devices /dev/nvidia*",
    ),
    400: Result("CUDA_ERROR_INVALID_HANDLE", "a handle is not valid"),
    401: Result(
        "CUDA_ERROR_ILLEGAL_STATE",
        "the process is not in the state that this call needs",
        "does another tool checkpoint it at the same time?",
    ),
    402: Result("CUDA_ERROR_LOSSY_QUERY", "an answer would leave out what matters"),
    500: Result("CUDA_ERROR_NOT_FOUND", "what was named does not exist"),
    600: Result(
        "CUDA_ERROR_NOT_READY",
        "work that was begun has not come to its end in time",
        "let the worker finish its requests first (thaw.dev/quiesce)",
    ),
    700: Result(
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "a kernel used an address that is not there",
        _RESTART,
    ),
    701: Result("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "a kernel needs more than the GPU has"),
    702: Result("CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel ran for too long", _RESTART),
    703: Result(
        "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING",
        "a kernel uses textures in a way that does not fit",
    ),
    704: Result("CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is on already"),
    705: Result("CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access is not on"),
    708: Result("CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "the primary context is in use already"),
    709: Result("CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context is gone, or not there yet"),
    710: Result("CUDA_ERROR_ASSERT", "an assertion failed in a kernel", _RESTART),
    711: Result("CUDA_ERROR_TOO_MANY_PEERS", "the hardware has no room for more peers"),
    712: Result("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "this host memory is pinned already"),
    713: Result("CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "this host memory is not pinned"),
    714: Result("CUDA_ERROR_HARDWARE_STACK_ERROR", "a kernel's stack is damaged", _RESTART),
    715: Result(
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "a kernel came to an instruction that there is not",
        _RESTART,
    ),
    716: Result("CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel used a misaligned address", _RESTART),
    717: Result(
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "a kernel used an address of the wrong kind",
        _RESTART,
    ),
    718: Result("CUDA_ERROR_INVALID_PC", "a kernel ran off its code", _RESTART),
    719: Result("CUDA_ERROR_LAUNCH_FAILED", "a kernel broke off", _RESTART),
    720: Result(
        "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
        "a cooperative kernel has more blocks than fit at once",
    ),
    721: Result(
        "CUDA_ERROR_TENSOR_MEMORY_LEAK",
        "a kernel ended without giving its tensor memory back",
        _RESTART,
    ),
    800: Result(
        "CUDA_ERROR_NOT_PERMITTED",
        "this is not allowed",
        "Thaw's engine must run as root and with CAP_SYS_PTRACE",
    ),
    801: Result(
        "CUDA_ERROR_NOT_SUPPORTED",
        "the driver cannot do this here, or not with what the process uses of CUDA",
        "managed memory, memory shared between processes, MPS and MIG may be why",
    ),
    802: Result(
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "the system is not ready for CUDA yet",
        _FABRIC,
    ),
    803: Result(
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "the kernel's driver and the CUDA library are of different versions",
        _DRIVER,
    ),
    804: Result(
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "the compatibility library does not support this GPU",
        "take the folder cuda/compat out of LD_LIBRARY_PATH, or install a newer NVIDIA driver",
    ),
    805: Result("CUDA_ERROR_MPS_CONNECTION_FAILED", "MPS cannot be reached", _MPS),
    806: Result("CUDA_ERROR_MPS_RPC_FAILURE", "the MPS server did not understand or answer", _MPS),
    807: Result("CUDA_ERROR_MPS_SERVER_NOT_READY", "the MPS server takes no clients now", _MPS),
    808: Result("CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "MPS has as many clients as it can", _MPS),
    809: Result(
        "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", "MPS has as many connections as it can", _MPS
    ),
    810: Result("CUDA_ERROR_MPS_CLIENT_TERMINATED", "MPS has ended the process's work", _RESTART),
    811: Result("CUDA_ERROR_CDP_NOT_SUPPORTED", "kernels cannot start kernels here, with MPS say"),
    812: Result(
        "CUDA_ERROR_CDP_VERSION_MISMATCH",
        "modules were built for different ways of kernels to start kernels",
    ),
    900: Result("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not while a graph is being captured"),
    901: Result("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "an earlier error has spoilt the capture"),
    902: Result("CUDA_ERROR_STREAM_CAPTURE_MERGE", "two captures would have become one"),
    903: Result("CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "this stream did not begin the capture"),
    904: Result("CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "a fork of the capture was not joined again"),
    905: Result("CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "a dependency would leave the capture"),
    906: Result(
        "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        "the legacy stream would have been drawn into the capture",
    ),
    907: Result("CUDA_ERROR_CAPTURED_EVENT", "the event belongs to a capture"),
    908: Result("CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "another thread began the capture"),
    909: Result(
        "CUDA_ERROR_TIMEOUT",
        "the time for it is over",
        "let the worker finish its requests first (thaw.dev/quiesce)",
    ),
    910: Result("CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "the graph cannot be updated like this"),
    911: Result(
        "CUDA_ERROR_EXTERNAL_DEVICE",
        "a device other than the GPU failed, and the process may be able to use CUDA no longer",
        _RESTART,
    ),
    912: Result("CUDA_ERROR_INVALID_CLUSTER_SIZE", "a kernel's clusters do not fit the GPU"),
    913: Result("CUDA_ERROR_FUNCTION_NOT_LOADED", "the function is not loaded yet"),
    914: Result("CUDA_ERROR_INVALID_RESOURCE_TYPE", "a resource is of the wrong type"),
    915: Result(
        "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION", "the resources are too few, or do not fit"
    ),
    916: Result(
        "CUDA_ERROR_KEY_ROTATION",
        "the keys of confidential computing could not be renewed",
    ),
    917: Result("CUDA_ERROR_STREAM_DETACHED", "the stream has lost its green context"),
    918: Result("CUDA_ERROR_GRAPH_RECAPTURE_FAILURE", "a graph could not be captured again"),
    919: Result("CUDA_ERROR_FABRIC_NOT_READY", "the GPUs' fabric is not up yet", _FABRIC),
    999: Result(
        "CUDA_ERROR_UNKNOWN",
        "the driver failed and does not say at what",
        "the kernel's log may: dmesg | grep -i nvrm",
    ),
}

# Where the call says more than the number does. What causes them was measured with 580.159.04.
_HINTS: dict[tuple[str, int], str] = {
    ("cuInit", OPERATING_SYSTEM): (
        "is /proc that of this pid namespace? The driver finds itself there"
    ),
    ("cuCheckpointProcessCheckpoint", OUT_OF_MEMORY): (
        "the worker's device memory goes into host memory, within its memory limit: raise that"
    ),
    ("cuCheckpointProcessCheckpoint", NOT_SUPPORTED): (
        "it has managed memory (cudaMallocManaged), as one reason, which no driver checkpoints: "
        "no snapshot can be made of it"
    ),
    # https://github.com/NVIDIA/cuda-checkpoint/issues/44: no second attempt has ever worked.
    ("cuCheckpointProcessRestore", OUT_OF_MEMORY): (
        "another process has the GPU's memory (nvidia-smi); this process cannot be restored again"
    ),
    # The checkpoint of such a process succeeds: nobody can tell before.
    ("cuCheckpointProcessRestore", NOT_SUPPORTED): (
        "it had memory of another process mapped (imported VMM memory, CUDA IPC) when it was "
        "checkpointed: the worker must let go of that before (thaw.dev/quiesce)"
    ),
    ("cuCheckpointProcessRestore", INVALID_VALUE): (
        "is the process alive, and every GPU that it had mapped to one of the same model?"
    ),
}


def result(number: int, call: str = "") -> Result:
    """A CUresult in words, as the answer of `call`; also one that is not in the table."""
    known = RESULTS.get(number)
    if known is None:
        name = f"CUresult {number}"
        return Result(name, "the driver is newer than what Thaw knows of its answers")
    return known._replace(hint=_HINTS.get((call, number), known.hint))

// csrc/cuda/tape.h on a CPU: the CUDA calls that it makes are written down instead, and one of them can be told to
// fail.
// Built and driven by tests/training/test_tape_program.py.
#include <cstddef>
#include <cstdint>
#include <vector>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, kRefused = 400 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
using cudaStream_t = struct Stream*;
using cudaEvent_t = struct Event*;
using cudaGraphExec_t = struct Graph*;

enum Called : int64_t {
    kGetDevice, kSetDevice, kGraphLaunch, kEventRecord, kStreamWaitEvent, kMemcpyAsync, kMemcpyPeerAsync
};
constexpr int kWords = 8;  // what was called, the current device, up to six arguments

static int current_device;
static int64_t fails_at = -1;  // the number of a call
static std::vector<int64_t> calls;

template <typename T> int64_t word(T value) { return static_cast<int64_t>(value); }
template <typename T> int64_t word(T* value) { return reinterpret_cast<int64_t>(value); }

template <typename... Arguments>
static cudaError_t called(Called what, Arguments... arguments) {
    const int64_t number = static_cast<int64_t>(calls.size()) / kWords;
    int64_t row[kWords] = {what, current_device, word(arguments)...};
    calls.insert(calls.end(), row, row + kWords);
    return number == fails_at ? kRefused : cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return called(kGetDevice);
}
inline cudaError_t cudaSetDevice(int device) {
    const cudaError_t error = called(kSetDevice, device);
    if (error == cudaSuccess) current_device = device;
    return error;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    return called(kGraphLaunch, graph, stream);
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return called(kEventRecord, event, stream);
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return called(kStreamWaitEvent, stream, event, flags);
}
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    return called(kMemcpyAsync, target, source, bytes, kind, stream);
}
inline cudaError_t cudaMemcpyPeerAsync(void* target, int target_device, const void* source, int source_device,
                                       size_t bytes, cudaStream_t stream) {
    return called(kMemcpyPeerAsync, target, target_device, source, source_device, bytes, stream);
}

#include "../csrc/cuda/tape.h"

extern "C" {

// Returns how many calls were made. failure: [its action, its error], or -1 twice; name: the call that failed, or "".
int64_t tape_on_host(const int64_t* actions, int64_t count, int device, int64_t fail, int64_t* failure,
                     const char** name) {
    calls.clear();
    current_device = device, fails_at = fail;
    const tape::Failure failed = tape::replay(reinterpret_cast<const tape::Action*>(actions), count);
    failure[0] = failed.call ? failed.action : -1;
    failure[1] = failed.call ? failed.error : -1;
    *name = failed.call ? failed.call : "";
    return static_cast<int64_t>(calls.size()) / kWords;
}

const int64_t* tape_calls() { return calls.data(); }
int tape_device() { return current_device; }
int tape_columns() { return tape::kColumns; }
}

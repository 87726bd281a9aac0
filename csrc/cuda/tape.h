// The tape of a step on two devices: graph launches, copies, and the events that order them, replayed from one table.
//
// Launched from Python one by one, they come so slowly that the devices wait for the host. Handles are what torch gives
// (`raw_cuda_graph_exec`, `cuda_stream`, `cuda_event`): who writes the table keeps their owners alive. No torch header
// is included, so that the tests compile the same text for a CPU beside stand-ins of the CUDA calls
// (tests/tape_on_host.cpp).
#pragma once

#include <cstdint>

namespace tape {

enum Kind : int64_t { kLaunch = 0, kCopy = 1, kRecord = 2, kWait = 3 };

// A row of the table. device: the one of the stream; of a copy, whose stream it runs on, the one that it comes from.
struct Action {
    int64_t kind, device, stream;
    int64_t handle;                        // of a graph or an event; of a copy the address that is written
    int64_t source, target_device, bytes;  // of a copy alone
};
constexpr int64_t kColumns = sizeof(Action) / sizeof(int64_t);

struct Failure {
    const char* call;  // null where none failed
    cudaError_t error;
    int64_t action;  // its number in the table, from 0
};

namespace detail {

inline Failure run(const Action& a, int64_t number) {
#define TAPE_CALL(function, ...)                                                                       \
    do {                                                                                               \
        const cudaError_t error = function(__VA_ARGS__);                                               \
        return error == cudaSuccess ? Failure{nullptr, cudaSuccess, number} : Failure{#function, error, number}; \
    } while (0)
    const auto stream = reinterpret_cast<cudaStream_t>(a.stream);
    switch (a.kind) {
        case kLaunch: TAPE_CALL(cudaGraphLaunch, reinterpret_cast<cudaGraphExec_t>(a.handle), stream);
        case kRecord: TAPE_CALL(cudaEventRecord, reinterpret_cast<cudaEvent_t>(a.handle), stream);
        case kWait: TAPE_CALL(cudaStreamWaitEvent, stream, reinterpret_cast<cudaEvent_t>(a.handle), 0);
        case kCopy: {
            void* target = reinterpret_cast<void*>(a.handle);
            const void* source = reinterpret_cast<const void*>(a.source);
            const auto bytes = static_cast<size_t>(a.bytes);
            if (a.target_device == a.device) {
                TAPE_CALL(cudaMemcpyAsync, target, source, bytes, cudaMemcpyDeviceToDevice, stream);
            }
            // Right for every allocator, with peer access and without; cudaMemcpyAsync is not (expandable segments).
            TAPE_CALL(cudaMemcpyPeerAsync, target, static_cast<int>(a.target_device), source,
                      static_cast<int>(a.device), bytes, stream);
        }
    }
    return {"no such kind of action", cudaErrorInvalidValue, number};
#undef TAPE_CALL
}

}  // namespace detail

// Everything is put on its stream in the order of the table, up to the first call that fails. The current device is
// afterwards what it was before.
inline Failure replay(const Action* actions, int64_t count) {
    int before = 0;
    if (const cudaError_t error = cudaGetDevice(&before); error != cudaSuccess) return {"cudaGetDevice", error, 0};
    int64_t current = before;
    Failure failure{nullptr, cudaSuccess, 0};
    for (int64_t number = 0; number < count && failure.call == nullptr; ++number) {
        if (actions[number].device != current) {
            const cudaError_t error = cudaSetDevice(static_cast<int>(actions[number].device));
            if (error != cudaSuccess) {
                failure = {"cudaSetDevice", error, number};
                break;
            }
            current = actions[number].device;
        }
        failure = detail::run(actions[number], number);
    }
    if (current != before) {
        const cudaError_t error = cudaSetDevice(before);
        if (failure.call == nullptr && error != cudaSuccess) failure = {"cudaSetDevice", error, count - 1};
    }
    return failure;
}

}  // namespace tape

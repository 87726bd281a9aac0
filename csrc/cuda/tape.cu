// replay_tape: the check of its table, and the words of a failure. What it does is in tape.h.
#include <cuda_runtime.h>

#include "tape.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// actions: (n, 7) int64 on the host, the rows being `tape::Action`s.
void replay_tape(Tensor actions) {
    STD_TORCH_CHECK(actions.is_cpu() && actions.scalar_type() == ScalarType::Long && actions.dim() == 2 &&
                        actions.size(1) == tape::kColumns && actions.is_contiguous(),
                    "replay_tape: the table must be (n, ", tape::kColumns, ") int64 on the host, contiguous");
    if (actions.size(0) == 0) return;
    const auto* rows = static_cast<const tape::Action*>(actions.const_data_ptr());
    const tape::Failure failure = tape::replay(rows, actions.size(0));
    if (failure.call == nullptr) return;
    cudaGetLastError();  // told here, and not once more by whoever asks next
    STD_TORCH_CHECK(false, "replay_tape: action ", failure.action, " of ", actions.size(0), " on cuda:",
                    rows[failure.action].device, ": ", failure.call, ": ", cudaGetErrorString(failure.error));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alexnet_mp_csrc, CPU, m) {  // that is where its only tensor is
    m.impl("replay_tape", TORCH_BOX(&replay_tape));
}

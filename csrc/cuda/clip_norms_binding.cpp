// Binds the CUDA kernels of `clip_norms` to torch; compiled by the host compiler.
#include <algorithm>
#include <vector>

#include "../clip_norms.h"
#include "clip_norms_layout.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

static_assert(kClipFloor == kNormFloor);

// Every launch takes kMaxGradients tensors: all launches sum before the first one scales.
template <typename scalar_t, typename Sum, typename Scale>
void clip(std::vector<Tensor>& gradients, double limit, Tensor& norms, Sum sum, Scale scale) {
  const int64_t groups = norms.numel();
  std::vector<ClipArgs<scalar_t>> launches;
  int64_t parts = 0;
  for (size_t begin = 0; begin < gradients.size(); begin += kMaxGradients) {
    ClipArgs<scalar_t> args{};
    const size_t end = std::min(gradients.size(), begin + kMaxGradients);
    int64_t numbers = 0;
    for (size_t i = begin; i < end; ++i) {
      const int64_t size = groups == 0 ? 0 : gradients[i].numel() / groups;
      args.size[i - begin] = size;
      args.gradient[i - begin] = data<scalar_t>(gradients[i]);
      numbers += size;
    }
    args.groups = groups;
    args.count = static_cast<int64_t>(end - begin);
    args.blocks = clip_blocks(numbers);
    args.first = parts;
    args.limit = static_cast<scalar_t>(limit);
    parts += args.blocks;
    launches.push_back(args);
  }
  Tensor partial = allocate(norms, {groups, parts}, ScalarType::Double);
  for (const auto launcher : {sum, scale}) {
    for (ClipArgs<scalar_t>& args : launches) {
      args.parts = parts;
      args.partial = data<double>(partial);
      args.norms = data<scalar_t>(norms);
      check_launch("clip_norms", launcher(&args, current_stream(norms.get_device_index())));
    }
  }
}

}  // namespace

Tensor clip_norms_cuda(std::vector<Tensor> gradients, double limit, bool per_group) {
  const int64_t groups = check_clip_norms(gradients, limit, per_group);
  MG2L_CHECK(groups <= 65535, "clip_norms: groups must be at most 65535 on CUDA, got ", groups);
  const DeviceGuard guard(gradients[0].get_device_index());
  Tensor norms = allocate(gradients[0], {groups});
  if (norms.scalar_type() == ScalarType::Float) {
    clip<float>(gradients, limit, norms, mg2l_clip_norms_sum_float, mg2l_clip_norms_scale_float);
  } else {
    clip<double>(gradients, limit, norms, mg2l_clip_norms_sum_double, mg2l_clip_norms_scale_double);
  }
  return norms;
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("clip_norms", TORCH_BOX(&mg2l::clip_norms_cuda));
}

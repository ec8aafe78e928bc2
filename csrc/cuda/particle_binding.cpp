// Binds the kernel of the particle worlds to torch; compiled by the host compiler.
#include "../particle/scenarios.h"
#include "../tensors.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

void check_world(const char* name, const Tensor& tensor, const Sizes& sizes, ScalarType dtype) {
  MG2L_CHECK(sizes_of(tensor) == sizes, "particle_step: ", name, " must have shape ",
             to_text(sizes), ", got ", to_text(sizes_of(tensor)));
  MG2L_CHECK(tensor.scalar_type() == dtype, "particle_step: ", name, " must be ", to_text(dtype),
             ", got ", to_text(tensor.scalar_type()));
  MG2L_CHECK(tensor.is_contiguous(), "particle_step: ", name, " must be contiguous");
}

}  // namespace

void particle_step_cuda(Tensor position, Tensor velocity, Tensor clock, Tensor observations,
                        Tensor rewards, const Tensor& actions_, const Tensor& landmarks,
                        const Tensor& task, const Tensor& draws, const Tensor& acceleration,
                        const Tensor& size, const Tensor& max_speed, const Tensor& collides,
                        int64_t kind, bool advance) {
  MG2L_CHECK(position.dim() == 3 && actions_.dim() == 3 && landmarks.dim() == 3 &&
                 observations.dim() == 3 && task.dim() == 2 && draws.dim() == 2,
             "particle_step: position, actions, landmarks and observations must have three axes, "
             "task and draws two");
  ParticleArgs<float> args{};
  args.worlds = position.size(0);
  args.kind = kind;
  args.agents = actions_.size(1);
  args.bodies = position.size(1);
  args.objects = landmarks.size(1);
  args.task_width = task.size(1);
  args.draw_count = draws.size(1);
  args.width = observations.size(2);
  args.advance = advance;
  const auto device = position.get_device_index();
  const DeviceGuard guard(device);
  const Tensor actions = as_contiguous(actions_);
  const int64_t n = args.worlds, bodies = args.bodies, agents = args.agents;
  constexpr auto kDouble = ScalarType::Double;
  check_world("position", position, {n, bodies, 2}, kDouble);
  check_world("velocity", velocity, {n, bodies, 2}, kDouble);
  check_world("clock", clock, {n}, ScalarType::Long);
  check_world("observations", observations, {n, agents, particle::observation_width(args)},
              ScalarType::Float);
  check_world("rewards", rewards, {n, agents}, ScalarType::Float);
  check_world("actions", actions, {n, agents, 2}, ScalarType::Float);
  check_world("landmarks", landmarks, {n, args.objects, 2}, kDouble);
  check_world("task", task, {n, args.task_width}, kDouble);
  check_world("draws", draws, {n, args.draw_count}, kDouble);
  check_world("acceleration", acceleration, {bodies}, kDouble);
  check_world("size", size, {bodies}, kDouble);
  check_world("max_speed", max_speed, {bodies}, kDouble);
  check_world("collides", collides, {bodies}, ScalarType::Bool);
  Tensor force = allocate(position, {n, bodies, 2});
  args.actions = data<float>(actions);
  args.landmarks = data<double>(landmarks);
  args.task = data<double>(task);
  args.draws = data<double>(draws);
  args.acceleration = data<double>(acceleration);
  args.size = data<double>(size);
  args.max_speed = data<double>(max_speed);
  args.collides = data<uint8_t>(collides);
  args.position = data<double>(position);
  args.velocity = data<double>(velocity);
  args.clock = data<int64_t>(clock);
  args.force = data<double>(force);
  args.observations = data<float>(observations);
  args.rewards = data<float>(rewards);
  check_launch("particle_step", mg2l_particle_step_float(&args, current_stream(device)));
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("particle_step", TORCH_BOX(&mg2l::particle_step_cuda));
}

// Occupancy as NVIDIA's own cuda_occupancy.h computes it, which needs neither driver nor GPU. Reads
// lines of numbers (see main) and prints the blocks that fit on a multiprocessor for each.
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  int major, minor, threads, registers, block_threads;
  size_t shared_per_sm, reserved, max_block_shared, shared;
  while (std::scanf("%d %d %d %zu %zu %zu %d %zu %d", &major, &minor, &threads, &shared_per_sm,
                    &reserved, &max_block_shared, &registers, &shared, &block_threads) == 9) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = shared_per_sm;
    device.sharedMemPerBlockOptin = max_block_shared;
    device.reservedSharedMemPerBlock = reserved;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel,
                                                                       &state, block_threads, 0);
    std::printf("%d\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}

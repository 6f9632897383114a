// The device kernel as plain C++, in front of painn.cu: each thread of a block is a std::thread, and
// every barrier is a real one, so that a sanitizer sees what a device would not forgive.

#pragma once
#define EMULATED 1

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include <pthread.h>

#define DEVICE static inline
#define DEVICE_METHOD inline
#define DEVICE_CALL static
#define BLOCK_MEMORY char* const memory = emulated.memory

struct Emulated {
    int thread, n_threads, block, n_blocks;
    char* memory;
    pthread_barrier_t *of_block, *of_cluster;
};
static thread_local Emulated emulated;

DEVICE int thread_index() { return emulated.thread; }
DEVICE int n_threads() { return emulated.n_threads; }
DEVICE int block_index() { return emulated.block; }
DEVICE int n_blocks() { return emulated.n_blocks; }
DEVICE void sync_block() { pthread_barrier_wait(emulated.of_block); }
DEVICE void sync_cluster() { pthread_barrier_wait(emulated.of_cluster); }
DEVICE void async_copy_16(void* shared, const void* global) { std::memcpy(shared, global, 16); }
DEVICE void async_close() {}
template <int OPEN> DEVICE void async_wait() {}
DEVICE int64_t ticks() { return 0; }
DEVICE int over(int a, int b) { return a / b; }
DEVICE void sincospi(double x, double* sine, double* cosine) {
    *sine = std::sin(x * 3.14159265358979323846);
    *cosine = std::cos(x * 3.14159265358979323846);
}
DEVICE void sincospif(float x, float* sine, float* cosine) {
    double s, c;
    sincospi(x, &s, &c);
    *sine = float(s);
    *cosine = float(c);
}

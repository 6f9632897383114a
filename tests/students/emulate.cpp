// Runs the device kernel on the host, on what a file holds:
//   emulate INPUT OUTPUT
// INPUT: eleven int64 (blocks, threads, bytes of shared memory, bytes of Arguments, and of positions,
// energies, forces, species, weights, constants, workspace), the Arguments, then all but energies,
// forces and workspace. OUTPUT: energies, forces. Every array is a piece of the heap of just its size,
// full of ones where nothing was given: NaN, or an index far away.

#include "emulate.h"

#include "painn.cu"

enum { BLOCKS_, THREADS_, SHARED_, ARGUMENTS_, POSITIONS_, ENERGIES_, FORCES_, SPECIES_, WEIGHTS_,
       CONSTANTS_, WORKSPACE_, SIZES_ };

static char* room(int64_t bytes) {
    char* memory = nullptr;  // not aligned_alloc, whose size would have to be rounded
    if (posix_memalign(reinterpret_cast<void**>(&memory), 64, size_t(bytes))) std::abort();
    std::memset(memory, 0xff, size_t(bytes));
    return memory;
}

static void read(void* to, int64_t bytes, FILE* file) {
    if (std::fread(to, 1, size_t(bytes), file) != size_t(bytes)) std::abort();
}

int main(int, char** argv) {
    int64_t size[SIZES_];
    Arguments a;
    FILE* file = std::fopen(argv[1], "rb");
    read(size, sizeof size, file);
    if (size[ARGUMENTS_] != int64_t(sizeof a)) {
        std::fprintf(stderr, "Arguments have %zu bytes here\n", sizeof a);
        return 2;
    }
    read(&a, sizeof a, file);
    char* array[SIZES_] = {};
    for (int k = POSITIONS_; k < SIZES_; ++k) {
        array[k] = room(size[k]);
        if (k != ENERGIES_ && k != FORCES_ && k != WORKSPACE_) read(array[k], size[k], file);
    }
    std::fclose(file);
    a.positions = array[POSITIONS_];
    a.energies = reinterpret_cast<double*>(array[ENERGIES_]);
    a.forces = array[FORCES_];
    a.species = reinterpret_cast<const int32_t*>(array[SPECIES_]);
    a.weights = reinterpret_cast<const T*>(array[WEIGHTS_]);
    a.constants = reinterpret_cast<const double*>(array[CONSTANTS_]);
    a.workspace = array[WORKSPACE_];

    const int n_blocks = int(size[BLOCKS_]), n_threads = int(size[THREADS_]);
    std::vector<pthread_barrier_t> blocks(n_blocks), clusters(n_blocks / CLUSTER);
    std::vector<char*> memory(n_blocks);
    for (auto& barrier : blocks) pthread_barrier_init(&barrier, nullptr, n_threads);
    for (auto& barrier : clusters) pthread_barrier_init(&barrier, nullptr, n_threads * CLUSTER);
    for (char*& of_block : memory) of_block = room(size[SHARED_]);
    std::vector<std::thread> threads;
    for (int block = 0; block < n_blocks; ++block)
        for (int thread = 0; thread < n_threads; ++thread)
            threads.emplace_back([&, block, thread] {
                emulated = {thread, n_threads, block, n_blocks, memory[block], &blocks[block],
                            &clusters[block / CLUSTER]};
                student_molecules(a);
            });
    for (auto& thread : threads) thread.join();

    file = std::fopen(argv[2], "wb");
    std::fwrite(array[ENERGIES_], 1, size_t(size[ENERGIES_]), file);
    std::fwrite(array[FORCES_], 1, size_t(size[FORCES_]), file);
    std::fclose(file);
    for (char* piece : array) std::free(piece);
    for (char* piece : memory) std::free(piece);
    return 0;
}

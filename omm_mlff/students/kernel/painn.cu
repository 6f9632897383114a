// Energies and forces of copies of one molecule on a device: PaiNN and the short-range prior, with
// analytic derivatives, in one launch. The function is that of painn.cpp, which says the mathematics.
//
// A team computes one group of copies at a time: a block, or a cluster of CLUSTER blocks where there
// are fewer copies than the device has room for. Each block of a team owns a slice of the features.
// What passes along pairs stays in its slice; only the inputs of the dense products are exchanged,
// through a workspace in global memory that the L2 cache holds, with a barrier of the team between.
// A product reads its weights through shared memory, chunk by chunk, the next one on its way while
// this one is used; the first one is on its way before the barrier.
//
// Every phase is a loop from the thread's number in steps of the block's size, between barriers, and
// no sum depends on who is first: there are no atomics. The same text compiles as plain C++ with
// emulate.h in front, a std::thread for each thread, and is tested so.
//
// What the compiler is told: REAL, FEATURES, LAYERS, RADIAL, READOUT, CLUSTER, THREADS, BLOCKS (a
// multiprocessor is to hold), PROFILE.

#ifndef EMULATED
#define DEVICE static __device__ __forceinline__
#define BLOCK_MEMORY  // `memory`, what a block shares
#define DEVICE_METHOD __device__ __forceinline__
#define DEVICE_CALL static __device__ __noinline__
extern __shared__ __align__(16) char memory[];
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
DEVICE int thread_index() { return threadIdx.x; }
DEVICE int n_threads() { return THREADS; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int n_blocks() { return gridDim.x; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_cluster() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
// 16 bytes from global to shared memory; visible after async_wait and a barrier.
DEVICE void async_copy_16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
#else
    *reinterpret_cast<float4*>(shared) = *reinterpret_cast<const float4*>(global);
#endif
}
DEVICE void async_close() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int OPEN> DEVICE void async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
#endif
}
DEVICE int64_t ticks() { return clock64(); }
// a / b of small numbers: exact for a below 2^20.
DEVICE int over(int a, int b) { return int(__fdividef(float(a) + 0.5f, float(b))); }
#endif

typedef REAL T;

DEVICE constexpr int padded(int n, int to) { return (n + to - 1) / to * to; }
DEVICE constexpr int largest(int a, int b) { return a > b ? a : b; }

constexpr int F = padded((FEATURES + CLUSTER - 1) / CLUSTER, 4);  // features of a slice
constexpr int H = padded((READOUT + CLUSTER - 1) / CLUSTER, 4);   // of the readout's hidden layer
constexpr int FALL = F * CLUSTER, HALL = H * CLUSTER;
constexpr int BASIS = RADIAL + 1;               // radial functions, and one for the filter's bias
constexpr int BASIS_ROW = padded(BASIS, 4);
constexpr int SETS = largest(1, THREADS / F);   // of threads that each take a slice's features
constexpr int ENERGY_PARTS = 8;
constexpr int AT_ONCE = THREADS * BLOCKS <= 256 ? 2 : 1;  // neighbours, where registers are there for it
constexpr int PULLS = 4;                        // dE/dd, and dE/du along each axis

struct alignas(16) Quad {
    T v[4];
};
DEVICE Quad load(const T* p) { return *reinterpret_cast<const Quad*>(p); }
DEVICE void store(T* p, const Quad& q) { *reinterpret_cast<Quad*>(p) = q; }
DEVICE void async_copy(T* shared, const T* global) {
    for (int k = 0; k < int(sizeof(Quad) / 16); ++k)
        async_copy_16(reinterpret_cast<char*>(shared) + 16 * k,
                      reinterpret_cast<const char*>(global) + 16 * k);
}

DEVICE float exponential(float x) { return expf(x); }
DEVICE double exponential(double x) { return exp(x); }
DEVICE float root(float x) { return sqrtf(x); }
DEVICE double root(double x) { return sqrt(x); }
// Sine and cosine of pi x, for |x| <= 1.
DEVICE void sine_cosine_pi(double x, float& sine, float& cosine) {
    sincospif(float(x), &sine, &cosine);
}
DEVICE void sine_cosine_pi(double x, double& sine, double& cosine) { sincospi(x, &sine, &cosine); }

// ------------------------------------------------------------------------------ what comes with a call

// The products, as the host plans them.
enum Kind {
    OF_MIX, OF_GATE_IN, OF_GATE_OUT, OF_PHI_IN, OF_READOUT_MIX, OF_READOUT_IN, OF_READOUT_IN_BACK,
    OF_GATE_OUT_BACK, OF_GATE_IN_BACK, OF_MIX_BACK, KINDS
};
struct Plan {
    int tile, parts;
};

struct Arguments {
    const void* positions;    // (n_copies * n_atoms, 3), float or double
    double* energies;         // (n_copies)
    void* forces;             // as positions
    const int32_t* species;   // (n_atoms), rows of the embedding
    const T* weights;         // from FILTER on, see below
    const double* constants;  // see Constant
    char* workspace;          // team_bytes for every team
    int64_t* stamps;          // (PHASES + 1): of each phase, and of the last stamp; with PROFILE
    int64_t team_bytes;
    int n_atoms, n_copies, group, doubles;
    int x_items, w_items;     // of shared memory, for the inputs of a product and a chunk of weights
    int share_items;          // and for sums that threads share
    int near_shared;          // whether the table of pairs is in shared memory
    int near_bytes;           // of a block's table of pairs
    Plan plans[KINDS];
};

// Where everything is in the array of doubles.
enum Constant {
    CUTOFF, EPSILON, TINY_SQUARED, RADIAL_NORM, MESSAGE_SCALE, COULOMB, SCREENING_LENGTH, LENGTH_UNIT,
    ENERGY_UNIT, FORCE_UNIT, REFERENCE, READOUT_BIAS, COEFFICIENTS, EXPONENTS = COEFFICIENTS + 4,
    N_SPECIES = EXPONENTS + 4, WAVE_NUMBERS
};
// After the wave numbers: the charges of n_species, and their powers.

// The packed weights: a product's matrix (K, sections * slice) of each rank one after another.
constexpr int FILTER = 0;  // (BASIS, 3, FALL)
constexpr int PHI_IN = FILTER + BASIS * 3 * FALL;
constexpr int PHI_IN_BIAS = PHI_IN + FALL * FALL;
constexpr int PHI_OUT = PHI_IN_BIAS + FALL;
constexpr int PHI_OUT_BIAS = PHI_OUT + 3 * FALL * FALL;
constexpr int MIX = PHI_OUT_BIAS + 3 * FALL;
constexpr int GATE_IN = MIX + 2 * FALL * FALL;
constexpr int GATE_IN_BIAS = GATE_IN + 2 * FALL * FALL;
constexpr int GATE_OUT = GATE_IN_BIAS + FALL;
constexpr int GATE_OUT_BIAS = GATE_OUT + 3 * FALL * FALL;
constexpr int PHI_IN_BACK = GATE_OUT_BIAS + 3 * FALL;
constexpr int PHI_OUT_BACK = PHI_IN_BACK + FALL * FALL;
constexpr int MIX_BACK = PHI_OUT_BACK + 3 * FALL * FALL;
constexpr int GATE_IN_BACK = MIX_BACK + 2 * FALL * FALL;
constexpr int GATE_OUT_BACK = GATE_IN_BACK + 2 * FALL * FALL;
constexpr int LAYER = GATE_OUT_BACK + 3 * FALL * FALL;  // items of a layer
constexpr int READOUT_MIX = LAYERS * LAYER;
constexpr int READOUT_IN = READOUT_MIX + FALL * FALL;
constexpr int READOUT_IN_BIAS = READOUT_IN + 2 * FALL * HALL;
constexpr int READOUT_OUT = READOUT_IN_BIAS + HALL;
constexpr int READOUT_MIX_BACK = READOUT_OUT + HALL;
constexpr int READOUT_IN_BACK = READOUT_MIX_BACK + FALL * FALL;
constexpr int SPECIES = READOUT_IN_BACK + 2 * FALL * HALL;  // of each: embedding (FALL), what the
constexpr int SPECIES_ROW = 4 * FALL;                       // first layer sends (3, FALL)

// What a block knows of the pairs of its team's copies; every block has a table of its own.
struct Near {
    T *basis, *slope;         // (n_pairs, BASIS_ROW), envelope and scale in them
    T* unit;                  // (n_pairs, 4): from the lower to the higher atom, and 1/d; zeros when far
    double *prior, *prior_slope;
    uint8_t* neighbors;       // (n_rows, n_atoms), within the copy, ascending
    int* n_neighbors;         // (n_rows)
    int* lost;                // (group)
};

// What a team keeps of its copies in its workspace, features of every rank side by side: where each
// array begins, in (n_rows, FALL).
constexpr int SCALARS = 0, VECTORS_MID = 1, INNER_LAYER = 4, LAST_MIXED = 5, LAST_NORM = 8, G_SCALARS = 9,
              G_VECTORS = 10, WIDE = 16, G_CAT = 22, G_PHI = 24, KEPT = 27;
// Of each layer: vectors after it, and what its way back needs.
constexpr int VECTORS = KEPT, MIXED = KEPT + 3, NORM = KEPT + 9, INNER = KEPT + 10, GATE = KEPT + 11,
              GATE_SLOPE = KEPT + 14, PHI = KEPT + 15, PHI_SLOPE = KEPT + 18, KEPT_OF_LAYER = 19;
constexpr int ARRAYS = KEPT + LAYERS * KEPT_OF_LAYER;

// What a block is to its team.
struct Seat {
    int rank, x_items, w_items;
};

struct State {
    const Arguments& a;
    Near near;
    T* arrays;
    int64_t unit;             // items of (rows of a whole group, FALL)
    T *hidden, *hidden_slope;  // (n_rows, HALL)
    double* pulls;            // (CLUSTER, n_pairs, PULLS)
    double* energies;         // (CLUSTER, n_rows, ENERGY_PARTS)
    const T* weights;
    const int32_t* species;
    int n_atoms, group, items;  // items of shared memory that products and messages take in turn
    bool near_shared;
    int rank, n_rows, n_pairs, copy_pairs;  // of the group at hand

    DEVICE_METHOD Seat seat() const { return {rank, a.x_items, a.w_items}; }
    DEVICE_METHOD T* at(int array) const { return arrays + array * unit; }
    DEVICE_METHOD T* at(int array, int layer) const { return at(array + layer * KEPT_OF_LAYER); }
};

DEVICE int pair_of(int n, int i, int j) {  // of a copy; i < j
    return i * (2 * n - i - 1) / 2 + j - i - 1;
}

DEVICE void sync_team() {
    if (CLUSTER > 1) sync_cluster();
    else sync_block();
}

// ---------------------------------------------------------------------------------------- profile

enum Phase {
    TABLE, SENDS, MESSAGES, MIXES, GATES, READOUTS, GATES_BACK, MIXES_BACK, PAIRS_BACK, MESSAGES_BACK,
    SENDS_BACK, FORCES, PHASES
};
#if PROFILE
#define BEGIN_PROFILE                                                     \
    if (thread_index() == 0 && block_index() == 0) st.a.stamps[PHASES] = ticks()
#define STAMP(phase)                                                      \
    if (thread_index() == 0 && block_index() == 0) {                      \
        const int64_t now = ticks();                                      \
        st.a.stamps[phase] += now - st.a.stamps[PHASES];                  \
        st.a.stamps[PHASES] = now;                                        \
    }
#else
#define BEGIN_PROFILE
#define STAMP(phase)
#endif

// ---------------------------------------------------------------------------------- dense products

struct Input {      // rows of `split` items of `a`, then of `b`
    const T *a, *b;
    int a_row, b_row, split;
};

struct Output {
    T* out;          // items of a row: sections of `slice * CLUSTER` each
    const T* bias;   // or nullptr
    T* slope;        // where silu's derivative goes: silu is applied; or nullptr
    const T* scale;  // what the result is multiplied by; or nullptr
    bool add;        // to what is there
};

// What a product is of, and how it is shared out: rows of a tile, and threads that share a sum.
struct Shape {
    int n_rows, n_in, sections, slice;
    Plan plan;
};

// Rows of weights that one chunk of shared memory takes.
DEVICE int chunk_depth(const Seat& seat, const Shape& p) {
    const int depth = over(seat.w_items, p.sections * p.slice) & ~3;
    return depth < p.n_in ? depth : p.n_in;
}

DEVICE void fetch(const T* weights, int first, int n, int columns, T* chunk) {
    const T* from = weights + int64_t(first) * columns;
    for (int q = thread_index() * 4; q < n * columns; q += n_threads() * 4)
        async_copy(chunk + q, from + q);
    async_close();
}

// What becomes of a tile's sums.
template <int TM>
DEVICE void finish(const Seat& seat, const Shape& p, const Output& to, int first_row, int rows,
                   int row_tiles, int row_tile, int column, const T (&sum)[TM][4]) {
    const int section = column / p.slice, width = p.slice * CLUSTER;
    const int at = section * width + seat.rank * p.slice + column - section * p.slice;
    Quad bias;
#pragma unroll
    for (int c = 0; c < 4; ++c) bias.v[c] = T(0);
    if (to.bias) bias = load(to.bias + at);
#pragma unroll
    for (int m = 0; m < TM; ++m) {
        const int row = row_tile + m * row_tiles;
        if (row >= rows) continue;
        const int where = (first_row + row) * p.sections * width + at;
        Quad q;
#pragma unroll
        for (int c = 0; c < 4; ++c) q.v[c] = sum[m][c] + bias.v[c];
        if (to.slope) {
            Quad slope;
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const T sigmoid = T(1) / (T(1) + exponential(-q.v[c]));
                slope.v[c] = sigmoid * (T(1) + q.v[c] * (T(1) - sigmoid));
                q.v[c] *= sigmoid;
            }
            store(to.slope + where, slope);
        }
        if (to.scale) {
            const Quad by = load(to.scale + where);
#pragma unroll
            for (int c = 0; c < 4; ++c) q.v[c] *= by.v[c];
        }
        if (to.add) {
            const Quad there = load(to.out + where);
#pragma unroll
            for (int c = 0; c < 4; ++c) q.v[c] += there.v[c];
        }
        store(to.out + where, q);
    }
}

// Rows [first_row, first_row + rows), their inputs in shared memory; TM rows and four columns a
// thread. `fetched`: the first chunk of weights is on its way.
template <int TM>
DEVICE void product_pass(const Seat& seat, const Shape& p, const T* weights, const Output& to,
                         int first_row, int rows, bool fetched) {
    BLOCK_MEMORY;
    T* x = reinterpret_cast<T*>(memory);
    T* chunks = x + seat.x_items;
    T* shares = chunks + 2 * seat.w_items;
    const int columns = p.sections * p.slice, column_tiles = columns / 4;
    const int row_tiles = (rows + TM - 1) / TM, units = row_tiles * column_tiles;
    const int parts = p.plan.parts, stride = p.n_in + 4;
    const int depth = chunk_depth(seat, p), n_chunks = over(p.n_in + depth - 1, depth);
    T sum[TM][4];
    for (int first = 0; first < units * parts; first += n_threads()) {
        const int u = first + thread_index();
        const bool active = u < units * parts;
        const int part = over(u, units), unit = u - part * units;
        const int row_tile = over(unit, column_tiles), column = (unit - row_tile * column_tiles) * 4;
        int from[TM];
#pragma unroll
        for (int m = 0; m < TM; ++m) {
            const int row = row_tile + m * row_tiles;
            from[m] = (row < rows ? row : 0) * stride;
#pragma unroll
            for (int c = 0; c < 4; ++c) sum[m][c] = T(0);
        }
        if (!fetched) fetch(weights, 0, depth, columns, chunks);
        fetched = false;
        for (int chunk = 0; chunk < n_chunks; ++chunk) {
            const int begin = chunk * depth;
            const int n = p.n_in - begin < depth ? p.n_in - begin : depth;
            if (chunk + 1 < n_chunks) {
                const int next = begin + depth, left = p.n_in - next;
                fetch(weights, next, left < depth ? left : depth, columns,
                      chunks + ((chunk + 1) & 1) * seat.w_items);
                async_wait<1>();
            } else {
                async_wait<0>();
            }
            sync_block();
            if (active) {
                const T* w = chunks + (chunk & 1) * seat.w_items + column;
                const T* in = x + begin;
#pragma unroll(TM <= 3 ? 2 : 1)  // what registers are there for
                for (int k = part * 4; k < n; k += parts * 4) {
                    Quad a[TM];
#pragma unroll
                    for (int m = 0; m < TM; ++m) a[m] = load(in + from[m] + k);
#pragma unroll
                    for (int kk = 0; kk < 4; ++kk) {
                        const Quad b = load(w + (k + kk) * columns);
#pragma unroll
                        for (int m = 0; m < TM; ++m)
#pragma unroll
                            for (int c = 0; c < 4; ++c) sum[m][c] += a[m].v[kk] * b.v[c];
                    }
                }
            }
            sync_block();
        }
        if (!active) continue;
        if (CLUSTER == 1 || parts == 1) {
            finish<TM>(seat, p, to, first_row, rows, row_tiles, row_tile, column, sum);
        } else {
#pragma unroll
            for (int m = 0; m < TM; ++m) {
                Quad q;
#pragma unroll
                for (int c = 0; c < 4; ++c) q.v[c] = sum[m][c];
                store(shares + (m * THREADS + u) * 4, q);
            }
        }
    }
    if (CLUSTER == 1 || parts == 1) return;
    sync_block();
    for (int unit = thread_index(); unit < units; unit += n_threads()) {
        const int row_tile = over(unit, column_tiles), column = (unit - row_tile * column_tiles) * 4;
#pragma unroll
        for (int m = 0; m < TM; ++m)
#pragma unroll
            for (int c = 0; c < 4; ++c) sum[m][c] = T(0);
        for (int part = 0; part < parts; ++part)
#pragma unroll
            for (int m = 0; m < TM; ++m) {
                const Quad q = load(shares + (m * THREADS + part * units + unit) * 4);
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[m][c] += q.v[c];
            }
        finish<TM>(seat, p, to, first_row, rows, row_tiles, row_tile, column, sum);
    }
}

// out = in weights [+ bias], for the columns of this block; `wait`: what other blocks wrote goes in.
DEVICE_CALL void product_call(int rank, int x_items, int w_items, int n_rows, int n_in, int sections,
                              int slice, int tile, int parts, const T* packed, const T* in_a,
                              const T* in_b, int a_row, int b_row, int split, T* out, const T* bias,
                              T* slope, const T* scale, bool add, bool wait) {
    const Seat seat{rank, x_items, w_items};
    const Shape p{n_rows, n_in, sections, slice, {tile, parts}};
    const Input in{in_a, in_b, a_row, b_row, split};
    const Output to{out, bias, slope, scale, add};
    BLOCK_MEMORY;
    T* x = reinterpret_cast<T*>(memory);
    const int columns = p.sections * p.slice, stride = p.n_in + 4;
    const T* weights = packed + int64_t(seat.rank) * p.n_in * columns;
    fetch(weights, 0, chunk_depth(seat, p), columns, x + seat.x_items);
    if (wait) sync_team();
    else sync_block();
    int most = over(seat.x_items, stride);
    if (most > p.n_rows) most = p.n_rows;
    const int pieces = over(p.n_rows + most - 1, most);
    for (int piece = 0, first = 0; piece < pieces; ++piece) {
        const int rows = (p.n_rows - first + pieces - piece - 1) / (pieces - piece);
        const int quads = p.n_in / 4;
        for (int q = thread_index(); q < rows * quads; q += n_threads()) {
            const int row = over(q, quads), k = (q - row * quads) * 4;
            const T* from = k < in.split ? in.a + (first + row) * in.a_row + k
                                         : in.b + (first + row) * in.b_row + k - in.split;
            async_copy(x + row * stride + k, from);
        }
        async_close();
        // Both groups are awaited with the first chunk: theirs is older than the next chunk's.
        const bool fetched = piece == 0;
        switch (p.plan.tile) {
            case 1: product_pass<1>(seat, p, weights, to, first, rows, fetched); break;
            case 2: product_pass<2>(seat, p, weights, to, first, rows, fetched); break;
            case 3: product_pass<3>(seat, p, weights, to, first, rows, fetched); break;
            case 5: product_pass<5>(seat, p, weights, to, first, rows, fetched); break;
#if !DOUBLES
            case 7: product_pass<7>(seat, p, weights, to, first, rows, fetched); break;
            case 10: product_pass<10>(seat, p, weights, to, first, rows, fetched); break;
#endif
        }
        first += rows;
        sync_block();
    }
}

// The same; one by one, arguments stay in registers, where structures would be put on the stack of
// every thread.
DEVICE void product(const Seat& seat, const Shape& p, const T* packed, const Input& in,
                    const Output& to, bool wait) {
    product_call(seat.rank, seat.x_items, seat.w_items, p.n_rows, p.n_in, p.sections, p.slice,
                 p.plan.tile, p.plan.parts, packed, in.a, in.b, in.a_row, in.b_row, in.split, to.out,
                 to.bias, to.slope, to.scale, to.add, wait);
}

// ------------------------------------------------------------------------------- the table of pairs

// How a pair fades towards the cutoff, and how that changes, by the distance over the cutoff.
DEVICE double envelope_at(double e) {
    const double square = e * e;
    return 1.0 + square * square * e * (-21.0 + e * (35.0 - 15.0 * e));
}
DEVICE double envelope_slope_at(double e) {
    const double square = e * e;
    return square * square * (-105.0 + e * (210.0 - 105.0 * e));
}

// Pair `u` of those that the threads share out: of a copy, and in order of the distance along the
// ring of its atoms, so that no search is needed; i < j.
struct Pair {
    int copy, i, j, index;
};
DEVICE Pair pair_at(const State& st, int u) {
    const int n = st.n_atoms, copy = over(u, st.copy_pairs), left = u - copy * st.copy_pairs;
    const int apart = over(left, n), a = left - apart * n;
    const int b = a + apart + 1 < n ? a + apart + 1 : a + apart + 1 - n;
    const int i = a < b ? a : b, j = a < b ? b : a;
    return {copy, i, j, copy * st.copy_pairs + pair_of(n, i, j)};
}

// Positions to pairs: distances, radial functions, the prior. Every block for itself.
template <class P>
DEVICE_CALL void tabulate(const State& state, const P* positions, int first_copy, int copies) {
    const State st = state;
    const Arguments& a = st.a;
    const double* c = a.constants;
    const int n = a.n_atoms;
    const Near& near = st.near;
    const double* charges = c + WAVE_NUMBERS + RADIAL;
    const double* powers = charges + int(c[N_SPECIES]);
    const P* x = positions + int64_t(first_copy) * n * 3;
    const P length = P(c[LENGTH_UNIT]);
    for (int row = thread_index(); row < st.n_rows; row += n_threads()) {
        int bad = 0;
        for (int k = 0; k < 3; ++k)
            if (!(x[row * 3 + k] - x[row * 3 + k] == P(0))) bad = 1;
        near.n_neighbors[row] = bad;  // until they are counted
    }
    const double cutoff = c[CUTOFF], per_cutoff = 1.0 / cutoff, tiny = c[TINY_SQUARED];
    for (int u = thread_index(); u < st.n_pairs; u += n_threads()) {
        const Pair at = pair_at(st, u);
        const int i = at.i, j = at.j, copy = at.copy, p = at.index;
        double r[3], squared = tiny;
        for (int k = 0; k < 3; ++k) {
            // As the scripted engine: the difference in the precision of the positions.
            const P xi = x[(copy * n + i) * 3 + k] * length, xj = x[(copy * n + j) * 3 + k] * length;
            r[k] = double(xj - xi);
            squared += r[k] * r[k];
        }
        const double d = sqrt(squared);
        const bool is_near = d < cutoff;
        const double inverse = is_near ? 1.0 / d : 0.0;
        Quad unit;
        for (int k = 0; k < 3; ++k) unit.v[k] = is_near ? T(r[k] * inverse) : T(0);
        unit.v[3] = T(inverse);
        store(near.unit + p * 4, unit);
        near.prior[p] = 0.0;
        near.prior_slope[p] = is_near ? d : 0.0;  // the distance, until the slope takes its place
    }
    sync_block();
    for (int g = thread_index(); g < copies; g += n_threads()) {
        int lost = 0;
        for (int i = 0; i < n; ++i) lost |= near.n_neighbors[g * n + i];
        near.lost[g] = lost;
    }
    // Four radial functions a thread. What is a number of the pair alone is quick to have again.
    constexpr int QUADS = BASIS_ROW / 4;
    const double scale = c[MESSAGE_SCALE];
    const T height = T(scale * c[RADIAL_NORM]);
    for (int u = thread_index(); u < st.n_pairs * QUADS; u += n_threads()) {
        const int p = u / QUADS, first = (u - p * QUADS) * 4;
        const double d = near.prior_slope[p];
        if (d == 0.0) continue;
        const T inverse = near.unit[p * 4 + 3], amplitude = height * inverse;
        const double e = d * per_cutoff;
        const double half_turns = d * 0.31830988618379067154;
        const double envelope = envelope_at(e), envelope_slope = envelope_slope_at(e) * per_cutoff;
        const T by = T(envelope), by_slope = T(envelope_slope);
        Quad basis, slope;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            basis.v[k] = slope.v[k] = T(0);
            if (first + k >= RADIAL) continue;
            const double wave = c[WAVE_NUMBERS + first + k], turns = wave * half_turns;
            T sine, cosine;
            sine_cosine_pi(turns - 2.0 * rint(0.5 * turns), sine, cosine);
            const T value = amplitude * sine;
            const T change = amplitude * T(wave) * cosine - value * inverse;
            basis.v[k] = value * by;
            slope.v[k] = change * by + value * by_slope;
        }
        if (first == RADIAL / 4 * 4) {  // what the filter's bias is multiplied by
            basis.v[RADIAL % 4] = T(envelope * scale);
            slope.v[RADIAL % 4] = T(envelope_slope * scale);
        }
        store(near.basis + p * BASIS_ROW + first, basis);
        store(near.slope + p * BASIS_ROW + first, slope);
    }
    sync_block();
    // The prior in double precision, once a team; meanwhile the last threads gather neighbours.
    for (int row = n_threads() - 1 - thread_index(); row < st.n_rows; row += n_threads()) {
        const int copy = over(row, n), i = row - copy * n;
        int found = 0;
#pragma unroll 4
        for (int j = 0; j < n; ++j) {
            const int p = copy * st.copy_pairs + (i < j ? pair_of(n, i, j) : pair_of(n, j, i));
            if (j != i && near.unit[p * 4 + 3] != T(0)) near.neighbors[row * n + found++] = uint8_t(j);
        }
        near.n_neighbors[row] = found;
    }
    const double per_screening = 1.0 / c[SCREENING_LENGTH];
    for (int u = thread_index(); u < st.n_pairs; u += n_threads()) {
        const Pair at = pair_at(st, u);
        const int p = at.index;
        const double d = near.prior_slope[p];
        if (d == 0.0) continue;
        if (st.rank > 0) {
            near.prior_slope[p] = 0.0;
            continue;
        }
        const int si = a.species[at.i], sj = a.species[at.j];
        const double rate = (powers[si] + powers[sj]) * per_screening, inverse = 1.0 / d;
        const double e = d * per_cutoff;
        const double envelope = envelope_at(e), envelope_slope = envelope_slope_at(e) * per_cutoff;
        double screening = 0.0, screening_slope = 0.0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const double per_length = c[EXPONENTS + k] * rate;
            const double term = c[COEFFICIENTS + k] * exp(-per_length * d);
            screening += term;
            screening_slope -= per_length * term;
        }
        const double coulomb = c[COULOMB] * charges[si] * charges[sj] * inverse;  // both directions
        near.prior[p] = coulomb * screening * envelope;
        near.prior_slope[p] = coulomb * (screening_slope * envelope + screening * envelope_slope -
                                         screening * envelope * inverse);
    }
    sync_block();
}

// ---------------------------------------------------------------------------------- along the pairs

// The features of this block, of every atom: where the first is, and how far it is to the next.
struct Slice {
    const T* at;
    int row, section;
};

DEVICE Slice slice_of(const State& st, const T* array, int sections) {
    return {array + st.rank * F, sections * FALL, FALL};
}

// A copy of a slice in shared memory, at `to`.
DEVICE Slice staged(const State& st, const Slice& from, int sections, T*& to) {
    constexpr int QUADS = F / 4;
    for (int q = thread_index(); q < st.n_rows * sections * QUADS; q += n_threads()) {
        const int line = q / QUADS, k = (q - line * QUADS) * 4;
        const int row = line / sections, section = line - row * sections;
        store(to + line * F + k, load(from.at + row * from.row + section * from.section + k));
    }
    const Slice there{to, sections * F, F};
    to += st.n_rows * sections * F;
    return there;
}

// The same of a table of the pairs, unless it is in shared memory already or finds no room.
DEVICE const T* staged_table(const State& st, const T* table, int row, T*& to, const T* end) {
    const int items = st.n_pairs * row;
    if (st.near_shared || items > end - to) return table;
    for (int k = thread_index() * 4; k < items; k += n_threads() * 4) store(to + k, load(table + k));
    const T* there = to;
    to += items;
    return there;
}

// A filter's weights of one feature, in registers.
DEVICE void take_filter(const T* filter, int section, int feature, T (&w)[BASIS]) {
#pragma unroll
    for (int k = 0; k < BASIS; ++k) w[k] = filter[(k * 3 + section) * FALL + feature];
}

// What the atoms receive: into s, and from v (of layers after the first) to v_mid.
template <bool FIRST>
DEVICE_CALL void receive(const State& state, const T* filter, const T* phi_l, const T* v_l) {
    const State st = state;
    BLOCK_MEMORY;
    T* room = reinterpret_cast<T*>(memory);
    const int n = st.n_atoms;
    const T* const end = room + st.items;
    const T* const bases = staged_table(st, st.near.basis, BASIS_ROW, room, end);
    const T* const units = staged_table(st, st.near.unit, 4, room, end);
    Slice phi, v{nullptr, 0, 0};
    if (FIRST) {
        phi = {st.weights + SPECIES + FALL + st.rank * F, SPECIES_ROW, FALL};
    } else {
        phi = slice_of(st, phi_l, 3);
        v = slice_of(st, v_l, 3);
        if (6 * st.n_rows * F <= end - room) {
            phi = staged(st, phi, 3, room);
            v = staged(st, v, 3, room);
        }
    }
    sync_block();
    for (int u = thread_index(); u < SETS * F; u += n_threads()) {
        const int set = u / F, f = u - set * F, feature = st.rank * F + f;
        T w_s[BASIS], w_v[BASIS], w_r[BASIS];
        take_filter(filter, 0, feature, w_s);
        if (!FIRST) take_filter(filter, 1, feature, w_v);
        take_filter(filter, 2, feature, w_r);
        for (int row = set; row < st.n_rows; row += SETS) {
            const int copy = over(row, n), i = row - copy * n, first_row = copy * n;
            T s = T(0), x = T(0), y = T(0), z = T(0);
            const int found = st.near.n_neighbors[row];
#pragma unroll AT_ONCE
            for (int k = 0; k < found; ++k) {
                const int j = st.near.neighbors[row * n + k];
                const int p = copy * st.copy_pairs + (i < j ? pair_of(n, i, j) : pair_of(n, j, i));
                const T* of = phi.at + (FIRST ? st.species[j] : first_row + j) * phi.row + f;
                const T phi_s = of[0], phi_r = of[2 * phi.section];
                T phi_v = T(0), vx = T(0), vy = T(0), vz = T(0);
                if (!FIRST) {
                    phi_v = of[phi.section];
                    const T* v_j = v.at + (first_row + j) * v.row + f;
                    vx = v_j[0];
                    vy = v_j[v.section];
                    vz = v_j[2 * v.section];
                }
                T by_s = T(0), by_v = T(0), by_r = T(0);
                const T* basis = bases + p * BASIS_ROW;
#pragma unroll
                for (int q = 0; q < BASIS_ROW; q += 4) {
                    const Quad b = load(basis + q);
#pragma unroll
                    for (int c = 0; c < 4; ++c)
                        if (q + c < BASIS) {
                            by_s += w_s[q + c] * b.v[c];
                            if (!FIRST) by_v += w_v[q + c] * b.v[c];
                            by_r += w_r[q + c] * b.v[c];
                        }
                }
                const Quad unit = load(units + p * 4);
                const T along_r = phi_r * (i < j ? by_r : -by_r);
                s += phi_s * by_s;
                x += along_r * unit.v[0];
                y += along_r * unit.v[1];
                z += along_r * unit.v[2];
                if (!FIRST) {
                    const T along_v = phi_v * by_v;
                    x += along_v * vx;
                    y += along_v * vy;
                    z += along_v * vz;
                }
            }
            const int at = row * FALL + feature, to = row * 3 * FALL + feature;
            if (FIRST) {
                s += st.weights[SPECIES + st.species[i] * SPECIES_ROW + feature];
            } else {
                s += st.at(SCALARS)[at];
                x += v_l[to];
                y += v_l[to + FALL];
                z += v_l[to + 2 * FALL];
            }
            st.at(SCALARS)[at] = s;
            st.at(VECTORS_MID)[to] = x;
            st.at(VECTORS_MID)[to + FALL] = y;
            st.at(VECTORS_MID)[to + 2 * FALL] = z;
        }
    }
}

// Back to what was sent: from gs and gv to g_phi, and to gv_next, which includes gv.
DEVICE_CALL void send_back(const State& state, const T* filter, const T* phi_l, const T* v_l, const T* gv_l,
                      T* gv_next) {
    const State st = state;
    BLOCK_MEMORY;
    T* room = reinterpret_cast<T*>(memory);
    const int n = st.n_atoms;
    const T* const end = room + st.items;
    const T* const bases = staged_table(st, st.near.basis, BASIS_ROW, room, end);
    const T* const units = staged_table(st, st.near.unit, 4, room, end);
    Slice gs = slice_of(st, st.at(G_SCALARS), 1), gv = slice_of(st, gv_l, 3);
    if (4 * st.n_rows * F <= end - room) {
        gs = staged(st, gs, 1, room);
        gv = staged(st, gv, 3, room);
    }
    sync_block();
    for (int u = thread_index(); u < SETS * F; u += n_threads()) {
        const int set = u / F, f = u - set * F, feature = st.rank * F + f;
        T w_s[BASIS], w_v[BASIS], w_r[BASIS];
        take_filter(filter, 0, feature, w_s);
        take_filter(filter, 1, feature, w_v);
        take_filter(filter, 2, feature, w_r);
        for (int row = set; row < st.n_rows; row += SETS) {
            const int copy = over(row, n), j = row - copy * n, first_row = copy * n;
            const int at = row * 3 * FALL + feature;
            const T phi_v = phi_l[at + FALL];
            const T vx = v_l[at], vy = v_l[at + FALL], vz = v_l[at + 2 * FALL];
            T g_s = T(0), g_v = T(0), g_r = T(0);
            T x = gv_l[at], y = gv_l[at + FALL], z = gv_l[at + 2 * FALL];
            const int found = st.near.n_neighbors[row];
#pragma unroll AT_ONCE
            for (int k = 0; k < found; ++k) {
                const int i = st.near.neighbors[row * n + k];
                const int p = copy * st.copy_pairs + (i < j ? pair_of(n, i, j) : pair_of(n, j, i));
                const T gs_i = gs.at[(first_row + i) * gs.row + f];
                const T* gv_i = gv.at + (first_row + i) * gv.row + f;
                const T a = gv_i[0], b = gv_i[gv.section], c = gv_i[2 * gv.section];
                T by_s = T(0), by_v = T(0), by_r = T(0);
                const T* basis = bases + p * BASIS_ROW;
#pragma unroll
                for (int q = 0; q < BASIS_ROW; q += 4) {
                    const Quad e = load(basis + q);
#pragma unroll
                    for (int m = 0; m < 4; ++m)
                        if (q + m < BASIS) {
                            by_s += w_s[q + m] * e.v[m];
                            by_v += w_v[q + m] * e.v[m];
                            by_r += w_r[q + m] * e.v[m];
                        }
                }
                const Quad unit = load(units + p * 4);
                const T along = a * unit.v[0] + b * unit.v[1] + c * unit.v[2];
                g_s += gs_i * by_s;
                g_v += (a * vx + b * vy + c * vz) * by_v;
                g_r += (i < j ? along : -along) * by_r;
                const T along_v = phi_v * by_v;
                x += a * along_v;
                y += b * along_v;
                z += c * along_v;
            }
            st.at(G_PHI)[at] = g_s;
            st.at(G_PHI)[at + FALL] = g_v;
            st.at(G_PHI)[at + 2 * FALL] = g_r;
            gv_next[at] = x;
            gv_next[at + FALL] = y;
            gv_next[at + 2 * FALL] = z;
        }
    }
}

// Back to distances and directions of the pairs, both directions of a pair together: what this
// block's features bring, summed in the order of the features.
template <bool FIRST>
DEVICE_CALL void pull(const State& state, const T* filter, const T* phi_l, const T* v_l, const T* gv_l, bool add) {
    const State st = state;
    BLOCK_MEMORY;
    T* room = reinterpret_cast<T*>(memory);
    constexpr int LINE = F + 1;  // odd: those who sum find no bank twice
    const int n = st.n_atoms;
    const T* const end = room + st.items;
    Slice phi, v{nullptr, 0, 0}, gs = slice_of(st, st.at(G_SCALARS), 1), gv = slice_of(st, gv_l, 3);
    if (FIRST) {
        phi = {st.weights + SPECIES + FALL + st.rank * F, SPECIES_ROW, FALL};
    } else {
        phi = slice_of(st, phi_l, 3);
        v = slice_of(st, v_l, 3);
    }
    const int least = (SETS < 8 ? 16 : 2 * SETS) * PULLS * LINE;  // some pairs for every set
    const T* const spare = end - (least < st.items / 2 ? least : st.items / 2);
    const T* const bases = staged_table(st, st.near.basis, BASIS_ROW, room, spare);
    const T* const slopes = staged_table(st, st.near.slope, BASIS_ROW, room, spare);
    if ((FIRST ? 4 : 10) * st.n_rows * F <= spare - room) {
        gs = staged(st, gs, 1, room);
        gv = staged(st, gv, 3, room);
        if (!FIRST) {
            phi = staged(st, phi, 3, room);
            v = staged(st, v, 3, room);
        }
    }
    sync_block();
    int batch = over(int(end - room), PULLS * LINE);
    if (batch > st.n_pairs) batch = st.n_pairs;
    double* pulls = st.pulls + int64_t(st.rank) * st.group * st.copy_pairs * PULLS;
    for (int first = 0; first < st.n_pairs; first += batch) {
        const int count = st.n_pairs - first < batch ? st.n_pairs - first : batch;
        for (int u = thread_index(); u < SETS * F; u += n_threads()) {
            const int set = u / F, f = u - set * F, feature = st.rank * F + f;
            T w_s[BASIS], w_v[BASIS], w_r[BASIS];
            take_filter(filter, 0, feature, w_s);
            if (!FIRST) take_filter(filter, 1, feature, w_v);
            take_filter(filter, 2, feature, w_r);
            const int begin = first + int(int64_t(count) * set / SETS);
            const int end = first + int(int64_t(count) * (set + 1) / SETS);
            int copy = begin / st.copy_pairs, i = 0, j = begin - copy * st.copy_pairs + 1;
            for (; j >= n; ++i) j -= n - i - 2;
#pragma unroll 1
            for (int p = begin; p < end; ++p) {
                T along_d = T(0), x = T(0), y = T(0), z = T(0);
                const Quad unit = load(st.near.unit + p * 4);
                if (unit.v[3] != T(0)) {
                    const int row_i = copy * n + i, row_j = copy * n + j;
                    const T* phi_i = phi.at + (FIRST ? st.species[i] : row_i) * phi.row + f;
                    const T* phi_j = phi.at + (FIRST ? st.species[j] : row_j) * phi.row + f;
                    const T* gv_i = gv.at + row_i * gv.row + f;
                    const T* gv_j = gv.at + row_j * gv.row + f;
                    const T xi = gv_i[0], yi = gv_i[gv.section], zi = gv_i[2 * gv.section];
                    const T xj = gv_j[0], yj = gv_j[gv.section], zj = gv_j[2 * gv.section];
                    const T r_i = phi_i[2 * phi.section], r_j = phi_j[2 * phi.section];
                    const T gx = xi * r_j - xj * r_i, gy = yi * r_j - yj * r_i, gz = zi * r_j - zj * r_i;
                    const T c_s = gs.at[row_i * gs.row + f] * phi_j[0] + gs.at[row_j * gs.row + f] * phi_i[0];
                    const T c_r = gx * unit.v[0] + gy * unit.v[1] + gz * unit.v[2];
                    T c_v = T(0);
                    if (!FIRST) {
                        const T* v_i = v.at + row_i * v.row + f;
                        const T* v_j = v.at + row_j * v.row + f;
                        const T ij = xi * v_j[0] + yi * v_j[v.section] + zi * v_j[2 * v.section];
                        const T ji = xj * v_i[0] + yj * v_i[v.section] + zj * v_i[2 * v.section];
                        c_v = ij * phi_j[phi.section] + ji * phi_i[phi.section];
                    }
                    T by_r = T(0), slope_s = T(0), slope_v = T(0), slope_r = T(0);
                    const T* basis = bases + p * BASIS_ROW;
                    const T* slope = slopes + p * BASIS_ROW;
#pragma unroll
                    for (int q = 0; q < BASIS_ROW; q += 4) {
                        const Quad b = load(basis + q), d = load(slope + q);
#pragma unroll
                        for (int m = 0; m < 4; ++m)
                            if (q + m < BASIS) {
                                by_r += w_r[q + m] * b.v[m];
                                slope_s += w_s[q + m] * d.v[m];
                                if (!FIRST) slope_v += w_v[q + m] * d.v[m];
                                slope_r += w_r[q + m] * d.v[m];
                            }
                    }
                    along_d = c_s * slope_s + c_v * slope_v + c_r * slope_r;
                    x = gx * by_r;
                    y = gy * by_r;
                    z = gz * by_r;
                }
                T* to = room + (p - first) * PULLS * LINE + f;
                to[0] = along_d;
                to[LINE] = x;
                to[2 * LINE] = y;
                to[3 * LINE] = z;
                if (++j == n) {
                    j = ++i + 1;
                    if (j == n) {
                        i = 0;
                        j = 1;
                        ++copy;
                    }
                }
            }
        }
        sync_block();
        for (int u = thread_index(); u < count * PULLS; u += n_threads()) {
            const T* line = room + u * LINE;
            T a = T(0), b = T(0), c = T(0), d = T(0);
            for (int f = 0; f < F; f += 4) {
                a += line[f];
                b += line[f + 1];
                c += line[f + 2];
                d += line[f + 3];
            }
            double* to = pulls + first * PULLS + u;
            const double sum = double(a + b) + double(c + d);
            *to = add ? *to + sum : sum;
        }
        sync_block();
    }
}

// -------------------------------------------------------------------------------------- the kernel

// One part of the elements (row, four features) of this block's slice.
#define EACH_QUAD(row, at)                                                             \
    _Pragma("unroll 1") for (int q_ = thread_index(), row = 0, at = 0;                                     \
         q_ < st.n_rows * (F / 4) &&                                                   \
         (row = q_ / (F / 4), at = st.rank * F + (q_ - row * (F / 4)) * 4, true);      \
         q_ += n_threads())

// sqrt(|v|^2 + eps^2) of the vectors in `from`, (n_rows, 3, row / 3 ...), four features at a time.
DEVICE Quad smooth_norm(const Quad& x, const Quad& y, const Quad& z, T squared) {
    Quad norm;
#pragma unroll
    for (int c = 0; c < 4; ++c)
        norm.v[c] = root(x.v[c] * x.v[c] + y.v[c] * y.v[c] + z.v[c] * z.v[c] + squared);
    return norm;
}

DEVICE T quotient(T a, T b) { return b > T(0) ? a / b : T(0); }

DEVICE_CALL void update(const State& state, int l, const T* w) {
    const State st = state;
    const int N = st.n_rows;
    T *mixed = st.at(MIXED, l), *norm = st.at(NORM, l), *inner = st.at(INNER, l);
    T *gate = st.at(GATE, l), *slope = st.at(GATE_SLOPE, l), *v = st.at(VECTORS, l);
    const T squared = T(st.a.constants[EPSILON] * st.a.constants[EPSILON]);
    product(st.seat(), {3 * N, FALL, 2, F, st.a.plans[OF_MIX]}, w + MIX, {st.at(VECTORS_MID), st.at(VECTORS_MID), FALL, 0, FALL},
            {mixed, nullptr, nullptr, nullptr, false}, true);
    STAMP(MIXES);
    EACH_QUAD(row, at) {
        const T* x = mixed + row * 6 * FALL + at;
        const Quad lx = load(x), rx = load(x + FALL), ly = load(x + 2 * FALL);
        const Quad ry = load(x + 3 * FALL), lz = load(x + 4 * FALL), rz = load(x + 5 * FALL);
        Quad product_;
        for (int c = 0; c < 4; ++c)
            product_.v[c] = lx.v[c] * rx.v[c] + ly.v[c] * ry.v[c] + lz.v[c] * rz.v[c];
        store(inner + row * FALL + at, product_);
        store(norm + row * FALL + at, smooth_norm(rx, ry, rz, squared));
    }
    product(st.seat(), {N, 2 * FALL, 1, F, st.a.plans[OF_GATE_IN]}, w + GATE_IN, {st.at(SCALARS), norm, FALL, FALL, FALL},
            {st.at(INNER_LAYER), w + GATE_IN_BIAS, slope, nullptr, false}, true);
    product(st.seat(), {N, FALL, 3, F, st.a.plans[OF_GATE_OUT]}, w + GATE_OUT, {st.at(INNER_LAYER), st.at(INNER_LAYER), FALL, 0, FALL},
            {gate, w + GATE_OUT_BIAS, nullptr, nullptr, false}, true);
    EACH_QUAD(row, at) {
        const T* a = gate + row * 3 * FALL + at;
        const Quad vv = load(a), sv = load(a + FALL), ss = load(a + 2 * FALL);
        const Quad by = load(inner + row * FALL + at);
        Quad s = load(st.at(SCALARS) + row * FALL + at);
        for (int c = 0; c < 4; ++c) s.v[c] += ss.v[c] + sv.v[c] * by.v[c];
        store(st.at(SCALARS) + row * FALL + at, s);
        for (int axis = 0; axis < 3; ++axis) {
            const Quad left = load(mixed + (row * 6 + axis * 2) * FALL + at);
            Quad to = load(st.at(VECTORS_MID) + (row * 3 + axis) * FALL + at);
            for (int c = 0; c < 4; ++c) to.v[c] += left.v[c] * vv.v[c];
            store(v + (row * 3 + axis) * FALL + at, to);
        }
    }
}

// Gradients before the update of layer l from those after it; gs and gv in place.
DEVICE_CALL void update_back(const State& state, int l, const T* w, T* gv) {
    const State st = state;
    const int N = st.n_rows;
    const T *mixed = st.at(MIXED, l), *norm = st.at(NORM, l), *inner = st.at(INNER, l);
    const T *gate = st.at(GATE, l), *slope = st.at(GATE_SLOPE, l);
    EACH_QUAD(row, at) {
        const Quad gs = load(st.at(G_SCALARS) + row * FALL + at), by = load(inner + row * FALL + at);
        Quad g_vv, g_sv;
        for (int c = 0; c < 4; ++c) g_vv.v[c] = T(0);
        for (int axis = 0; axis < 3; ++axis) {
            const Quad g = load(gv + (row * 3 + axis) * FALL + at);
            const Quad left = load(mixed + (row * 6 + axis * 2) * FALL + at);
            for (int c = 0; c < 4; ++c) g_vv.v[c] += g.v[c] * left.v[c];
        }
        for (int c = 0; c < 4; ++c) g_sv.v[c] = gs.v[c] * by.v[c];
        T* g = st.at(WIDE) + row * 3 * FALL + at;
        store(g, g_vv);
        store(g + FALL, g_sv);
        store(g + 2 * FALL, gs);
    }
    product(st.seat(), {N, 3 * FALL, 1, F, st.a.plans[OF_GATE_OUT_BACK]}, w + GATE_OUT_BACK, {st.at(WIDE), st.at(WIDE), 3 * FALL, 0, 3 * FALL},
            {st.at(INNER_LAYER), nullptr, nullptr, slope, false}, true);
    product(st.seat(), {N, FALL, 2, F, st.a.plans[OF_GATE_IN_BACK]}, w + GATE_IN_BACK, {st.at(INNER_LAYER), st.at(INNER_LAYER), FALL, 0, FALL},
            {st.at(G_CAT), nullptr, nullptr, nullptr, false}, true);
    EACH_QUAD(row, at) {
        const T* a = gate + row * 3 * FALL + at;
        const Quad vv = load(a), sv = load(a + FALL), size = load(norm + row * FALL + at);
        const Quad into_norm = load(st.at(G_CAT) + row * 2 * FALL + FALL + at);
        const Quad into_s = load(st.at(G_CAT) + row * 2 * FALL + at);
        Quad gs = load(st.at(G_SCALARS) + row * FALL + at), g_inner, g_norm;
        for (int c = 0; c < 4; ++c) {
            g_inner.v[c] = gs.v[c] * sv.v[c];
            g_norm.v[c] = quotient(into_norm.v[c], size.v[c]);
            gs.v[c] += into_s.v[c];
        }
        store(st.at(G_SCALARS) + row * FALL + at, gs);
        for (int axis = 0; axis < 3; ++axis) {
            const int line = (row * 3 + axis) * 2 * FALL + at;
            const Quad left = load(mixed + line), right = load(mixed + line + FALL);
            const Quad g = load(gv + (row * 3 + axis) * FALL + at);
            Quad g_left, g_right;
            for (int c = 0; c < 4; ++c) {
                g_left.v[c] = g.v[c] * vv.v[c] + g_inner.v[c] * right.v[c];
                g_right.v[c] = g_inner.v[c] * left.v[c] + g_norm.v[c] * right.v[c];
            }
            store(st.at(WIDE) + line, g_left);
            store(st.at(WIDE) + line + FALL, g_right);
        }
    }
    STAMP(GATES_BACK);
    product(st.seat(), {3 * N, 2 * FALL, 1, F, st.a.plans[OF_MIX_BACK]}, w + MIX_BACK, {st.at(WIDE), st.at(WIDE), 2 * FALL, 0, 2 * FALL},
            {gv, nullptr, nullptr, nullptr, true}, true);
}

// Energies of the atoms, by rank and part, and the gradients of s and of the last vectors.
DEVICE_CALL void read_out(const State& state, const T* v, T* gv) {
    const State st = state;
    const T* w = st.a.weights;
    const int N = st.n_rows;
    const T squared = T(st.a.constants[EPSILON] * st.a.constants[EPSILON]);
    product(st.seat(), {3 * N, FALL, 1, F, st.a.plans[OF_READOUT_MIX]}, w + READOUT_MIX, {v, v, FALL, 0, FALL},
            {st.at(LAST_MIXED), nullptr, nullptr, nullptr, false}, true);
    EACH_QUAD(row, at) {
        const T* x = st.at(LAST_MIXED) + row * 3 * FALL + at;
        store(st.at(LAST_NORM) + row * FALL + at,
              smooth_norm(load(x), load(x + FALL), load(x + 2 * FALL), squared));
    }
    product(st.seat(), {N, 2 * FALL, 1, H, st.a.plans[OF_READOUT_IN]}, w + READOUT_IN, {st.at(SCALARS), st.at(LAST_NORM), FALL, FALL, FALL},
            {st.hidden, w + READOUT_IN_BIAS, st.hidden_slope, nullptr, false}, true);
    for (int u = thread_index(); u < N * ENERGY_PARTS; u += n_threads()) {
        const int row = u / ENERGY_PARTS, part = u - row * ENERGY_PARTS;
        const int begin = st.rank * H + H * part / ENERGY_PARTS;
        const int end = st.rank * H + H * (part + 1) / ENERGY_PARTS;
        double sum = 0.0;
        for (int k = begin; k < end; ++k) {
            const T out = w[READOUT_OUT + k];
            sum += double(st.hidden[row * HALL + k] * out);
            st.hidden_slope[row * HALL + k] *= out;
        }
        st.energies[(int64_t(st.rank) * st.a.group * st.a.n_atoms + row) * ENERGY_PARTS + part] = sum;
    }
    product(st.seat(), {N, HALL, 2, F, st.a.plans[OF_READOUT_IN_BACK]}, w + READOUT_IN_BACK, {st.hidden_slope, st.hidden_slope, HALL, 0, HALL},
            {st.at(G_CAT), nullptr, nullptr, nullptr, false}, true);
    EACH_QUAD(row, at) {
        const Quad size = load(st.at(LAST_NORM) + row * FALL + at);
        const Quad into_norm = load(st.at(G_CAT) + row * 2 * FALL + FALL + at);
        store(st.at(G_SCALARS) + row * FALL + at, load(st.at(G_CAT) + row * 2 * FALL + at));
        for (int axis = 0; axis < 3; ++axis) {
            Quad x = load(st.at(LAST_MIXED) + (row * 3 + axis) * FALL + at);
            for (int c = 0; c < 4; ++c) x.v[c] *= quotient(into_norm.v[c], size.v[c]);
            store(st.at(LAST_MIXED) + (row * 3 + axis) * FALL + at, x);
        }
    }
    product(st.seat(), {3 * N, FALL, 1, F, st.a.plans[OF_READOUT_MIX]}, w + READOUT_MIX_BACK, {st.at(LAST_MIXED), st.at(LAST_MIXED), FALL, 0, FALL},
            {gv, nullptr, nullptr, nullptr, false}, true);
}

// Everything that the ranks brought, by the first of them.
template <class P>
DEVICE_CALL void collect(const State& state, P* forces, int first_copy, int copies) {
    const State st = state;
    const Arguments& a = st.a;
    const double* c = a.constants;
    const int n = a.n_atoms;
    // The radial functions are not needed any more: their place takes the sums, 4 doubles a pair.
    double* sums = reinterpret_cast<double*>(st.near.basis);
    const int64_t of_rank = int64_t(a.group) * st.copy_pairs * PULLS;
    for (int u = thread_index(); u < st.n_pairs * PULLS; u += n_threads()) {
        double sum = 0.0;
#pragma unroll
        for (int rank = 0; rank < CLUSTER; ++rank) sum += st.pulls[rank * of_rank + u];
        if (u % PULLS == 0) sum += st.near.prior_slope[u / PULLS];
        sums[u] = sum;
    }
    // Parts of the energies of the atoms, from all ranks in the place of the first one's.
    const int64_t rows_of_rank = int64_t(a.group) * n * ENERGY_PARTS;
    for (int u = n_threads() - 1 - thread_index(); u < st.n_rows * ENERGY_PARTS; u += n_threads()) {
        double sum = 0.0;
#pragma unroll
        for (int rank = 0; rank < CLUSTER; ++rank) sum += st.energies[rank * rows_of_rank + u];
        st.energies[u] = sum;
    }
    sync_block();
    // What pulls at the higher atom of a pair, in the place of what it is made of.
    for (int p = thread_index(); p < st.n_pairs; p += n_threads()) {
        const T* unit = st.near.unit + p * 4;
        double* g = sums + p * PULLS;
        const double inverse = unit[3];
        const double along = g[1] * unit[0] + g[2] * unit[1] + g[3] * unit[2];
        const double straight = g[0] - along * inverse;
        for (int axis = 0; axis < 3; ++axis) g[axis] = straight * unit[axis] + g[1 + axis] * inverse;
    }
    // Energies of the atoms, each with the prior of its pairs to later ones, in the first part's place.
    for (int row = n_threads() - 1 - thread_index(); row < st.n_rows; row += n_threads()) {
        const int copy = over(row, n), i = row - copy * n;
        double energy = 0.0, prior = 0.0;
        double* parts = st.energies + row * ENERGY_PARTS;
#pragma unroll
        for (int part = 0; part < ENERGY_PARTS; ++part) energy += parts[part];
#pragma unroll 4
        for (int j = i + 1; j < n; ++j) prior += st.near.prior[copy * st.copy_pairs + pair_of(n, i, j)];
        parts[0] = energy + c[READOUT_BIAS] + prior;
    }
    sync_block();
    const double nothing = sqrt(-1.0 + 0.0 * c[CUTOFF]);
    for (int g = n_threads() - 1 - thread_index(); g < copies; g += n_threads()) {
        double energy = 0.0;
#pragma unroll 4
        for (int i = 0; i < n; ++i) energy += st.energies[(g * n + i) * ENERGY_PARTS];
        a.energies[first_copy + g] =
            st.near.lost[g] ? nothing : (energy + c[REFERENCE]) * c[ENERGY_UNIT];
    }
    for (int u = thread_index(); u < st.n_rows * 3; u += n_threads()) {
        const int row = u / 3, axis = u - row * 3, copy = over(row, n), i = row - copy * n;
        const double* of_copy = sums + copy * st.copy_pairs * PULLS + axis;
        double force = 0.0;
#pragma unroll 4
        for (int j = 0; j < n; ++j) {  // what is far pulls with nothing
            const int p = i < j ? pair_of(n, i, j) : j < i ? pair_of(n, j, i) : 0;
            const double pull = of_copy[p * PULLS];
            force += i < j ? pull : j < i ? -pull : 0.0;
        }
        forces[int64_t(first_copy) * n * 3 + u] =
            P(st.near.lost[copy] ? nothing : force * c[FORCE_UNIT]);
    }
}

DEVICE void evaluate(State& st) {
    const Arguments& a = st.a;
    BEGIN_PROFILE;
    const int n_teams = n_blocks() / CLUSTER, n_groups = (a.n_copies + a.group - 1) / a.group;
    for (int group = block_index() / CLUSTER; group < n_groups; group += n_teams) {
        const int first_copy = group * a.group;
        const int copies = a.n_copies - first_copy < a.group ? a.n_copies - first_copy : a.group;
        st.n_rows = copies * a.n_atoms;
        st.n_pairs = copies * st.copy_pairs;
        const int N = st.n_rows;
        if (a.doubles) tabulate(st, static_cast<const double*>(a.positions), first_copy, copies);
        else tabulate(st, static_cast<const float*>(a.positions), first_copy, copies);
        STAMP(TABLE);
#pragma unroll 1
        for (int l = 0; l < LAYERS; ++l) {
            const T* w = a.weights + int64_t(l) * LAYER;
            if (l == 0) {
                receive<true>(st, w + FILTER, nullptr, nullptr);
            } else {
                T *phi = st.at(PHI, l), *slope = st.at(PHI_SLOPE, l);
                product(st.seat(), {N, FALL, 1, F, st.a.plans[OF_PHI_IN]}, w + PHI_IN, {st.at(SCALARS), st.at(SCALARS), FALL, 0, FALL},
                        {st.at(INNER_LAYER), w + PHI_IN_BIAS, slope, nullptr, false}, true);
                product(st.seat(), {N, FALL, 3, F, st.a.plans[OF_GATE_OUT]}, w + PHI_OUT, {st.at(INNER_LAYER), st.at(INNER_LAYER), FALL, 0, FALL},
                        {phi, w + PHI_OUT_BIAS, nullptr, nullptr, false}, true);
                STAMP(SENDS);
                receive<false>(st, w + FILTER, phi, st.at(VECTORS, l - 1));
            }
            sync_block();
            STAMP(MESSAGES);
            update(st, l, w);
            STAMP(GATES);
        }
        T *gv = st.at(G_VECTORS), *gv_next = st.at(G_VECTORS + 3);
        read_out(st, st.at(VECTORS, LAYERS - 1), gv);
        STAMP(READOUTS);
#pragma unroll 1
        for (int l = LAYERS - 1; l >= 0; --l) {
            const T* w = a.weights + int64_t(l) * LAYER;
            update_back(st, l, w, gv);
            STAMP(MIXES_BACK);
            if (l == 0) {
                pull<true>(st, w + FILTER, nullptr, nullptr, gv, LAYERS > 1);
                STAMP(PAIRS_BACK);
                break;
            }
            const T *phi = st.at(PHI, l), *slope = st.at(PHI_SLOPE, l);
            const T* v = st.at(VECTORS, l - 1);
            pull<false>(st, w + FILTER, phi, v, gv, l < LAYERS - 1);
            STAMP(PAIRS_BACK);
            send_back(st, w + FILTER, phi, v, gv, gv_next);
            sync_block();
            STAMP(MESSAGES_BACK);
            product(st.seat(), {N, 3 * FALL, 1, F, st.a.plans[OF_GATE_OUT_BACK]}, w + PHI_OUT_BACK, {st.at(G_PHI), st.at(G_PHI), 3 * FALL, 0, 3 * FALL},
                    {st.at(INNER_LAYER), nullptr, nullptr, slope, false}, true);
            product(st.seat(), {N, FALL, 1, F, st.a.plans[OF_PHI_IN]}, w + PHI_IN_BACK, {st.at(INNER_LAYER), st.at(INNER_LAYER), FALL, 0, FALL},
                    {st.at(G_SCALARS), nullptr, nullptr, nullptr, true}, true);
            T* old = gv;
            gv = gv_next;
            gv_next = old;
            STAMP(SENDS_BACK);
        }
        sync_team();
        if (st.rank == 0) {
            if (a.doubles) collect(st, static_cast<double*>(a.forces), first_copy, copies);
            else collect(st, static_cast<float*>(a.forces), first_copy, copies);
        }
        sync_team();  // nobody begins the next group while the first one still reads
        STAMP(FORCES);
    }
}

DEVICE char* taken(char*& at, int64_t bytes) {
    char* here = at;
    at += (bytes + 15) / 16 * 16;
    return here;
}

#ifndef EMULATED
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) student_molecules(
    const __grid_constant__ Arguments a)
#else
static void student_molecules(const Arguments& a)
#endif
{
    BLOCK_MEMORY;
    const int64_t rows = int64_t(a.group) * a.n_atoms;
    const int copy_pairs = a.n_atoms * (a.n_atoms - 1) / 2;
    const int64_t pairs = int64_t(a.group) * copy_pairs;
    State st{a};
    st.rank = block_index() % CLUSTER;
    st.copy_pairs = copy_pairs;
    st.unit = rows * FALL;
    st.weights = a.weights;
    st.species = a.species;
    st.n_atoms = a.n_atoms;
    st.group = a.group;
    st.items = a.x_items + 2 * a.w_items;
    st.near_shared = a.near_shared != 0;
    char* at = a.workspace + block_index() / CLUSTER * a.team_bytes;
    st.arrays = (T*)taken(at, ARRAYS * st.unit * int64_t(sizeof(T)));
    st.hidden = (T*)taken(at, rows * HALL * int64_t(sizeof(T)));
    st.hidden_slope = (T*)taken(at, rows * HALL * int64_t(sizeof(T)));
    st.pulls = (double*)taken(at, CLUSTER * pairs * PULLS * 8);
    st.energies = (double*)taken(at, CLUSTER * rows * ENERGY_PARTS * 8);
    if (a.near_shared)
        at = memory + int64_t(a.x_items + 2 * a.w_items + a.share_items) * sizeof(T);
    else
        at += int64_t(st.rank) * a.near_bytes;
    Near& near = st.near;
    near.basis = (T*)taken(at, pairs * BASIS_ROW * int64_t(sizeof(T)));
    near.slope = (T*)taken(at, pairs * BASIS_ROW * int64_t(sizeof(T)));
    near.unit = (T*)taken(at, pairs * 4 * int64_t(sizeof(T)));
    near.prior = (double*)taken(at, pairs * 8);
    near.prior_slope = (double*)taken(at, pairs * 8);
    near.neighbors = (uint8_t*)taken(at, rows * a.n_atoms);
    near.n_neighbors = (int*)taken(at, rows * 4);
    near.lost = (int*)taken(at, int64_t(a.group) * 4);
    evaluate(st);
}

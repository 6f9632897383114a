// Energy and forces of a student: PaiNN and the short-range prior, with analytic derivatives.
//
// The network is omm_mlff/students/painn.py, the prior omm_mlff/students/prior.py: the same function
// of the positions, in the same precision, without TorchScript around it. What makes it fast:
//   - only the gradient for the positions is formed, by hand, layer by layer;
//   - the filter and its derivative are recomputed where they are used, so that they stay in cache;
//   - one filter serves both directions of a pair in a molecule;
//   - what the first layer gets from the embedding depends on the species alone: it is tabulated;
//   - every sum over neighbours is a gather, so that atoms can be given to threads.
// Lengths are angstrom and energies eV in here; a factor at each end brings OpenMM's units.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include <unistd.h>

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MAX_ROWS = 6, MAX_COLUMNS = 4;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MAX_ROWS = 6, MAX_COLUMNS = 2;
#else
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 4, MAX_COLUMNS = 2;
#endif
constexpr int ALIGNMENT = 64;

template <class T> struct Simd;
template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
};
template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T> using Vec = typename Simd<T>::V;
template <class T> constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

template <class T> inline Vec<T> load(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }
template <class T> inline void store(T* p, Vec<T> v) { *reinterpret_cast<Vec<T>*>(p) = v; }
template <class T> inline Vec<T> splat(T x) { return x - Vec<T>{}; }
template <class T> inline double total(Vec<T> v) {
    T sum = 0;
    for (int k = 0; k < LANES<T>; ++k) sum += v[k];
    return sum;
}
template <class T> inline int padded(int n) { return (n + LANES<T> - 1) / LANES<T> * LANES<T>; }

// exp by 2^n and a polynomial on [-ln 2 / 2, ln 2 / 2]; arguments are kept where 2^n is a number.
inline Vec<float> vexp(Vec<float> x) {
    typedef Simd<float>::I I;
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
    const Vec<float> magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec<float> shifted = x * 1.44269504089f + magic;
    const Vec<float> n = shifted - magic;
    const Vec<float> r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    Vec<float> p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const I power = ((I)shifted - (I)magic + 127) << 23;
    return p * (Vec<float>)power;
}

inline Vec<double> vexp(Vec<double> x) {
    typedef Simd<double>::I I;
    x = x < -708.0 ? splat(-708.0) : x;
    x = x > 709.0 ? splat(709.0) : x;
    const Vec<double> magic = splat(6755399441055744.0);  // 1.5 * 2^52
    const Vec<double> shifted = x * 1.4426950408889634 + magic;
    const Vec<double> n = shifted - magic;
    const Vec<double> r = (x - n * 0.69314718036912382) - n * 1.9082149292705877e-10;
    Vec<double> p = splat(1.0 / 6227020800.0);
    double factorial = 479001600.0;
    for (int k = 12; k >= 1; --k) {
        p = p * r + 1.0 / factorial;
        factorial /= k;
    }
    p = p * r + 1.0;
    const I power = ((I)shifted - (I)magic + 1023) << 52;
    return p * (Vec<double>)power;
}

// Sine and cosine by a polynomial on [-pi/2, pi/2], for arguments up to some thousand.
inline void vsincos(Vec<double> x, Vec<double>& sine, Vec<double>& cosine) {
    typedef Simd<double>::I I;
    const Vec<double> magic = splat(6755399441055744.0);
    const Vec<double> shifted = x * 0.31830988618379067 + magic;
    const Vec<double> n = shifted - magic;
    const Vec<double> r = (x - n * 3.1415926535897931) - n * 1.2246467991473532e-16;
    const Vec<double> r2 = r * r;
    Vec<double> s = splat(1.0), c = splat(1.0);
    for (int k = 10; k >= 1; --k) {
        s = 1.0 - s * r2 * (1.0 / ((2 * k) * (2 * k + 1)));
        c = 1.0 - c * r2 * (1.0 / ((2 * k - 1) * (2 * k)));
    }
    const I odd = ((I)shifted - (I)magic) << 63;
    sine = (Vec<double>)((I)(s * r) ^ odd);
    cosine = (Vec<double>)((I)c ^ odd);
}

// ---------------------------------------------------------------------------- matrix products

// A matrix (K, N) as the products want it: panels of MAX_COLUMNS vectors, each contiguous. N is made
// of sections of one width, each padded to whole vectors, as the features of an atom are.
template <class T> struct Packed {
    int sections_in = 0, width_in = 0, stride_in = 0, n_vectors = 0;
    std::unique_ptr<T, void (*)(void*)> data{nullptr, std::free};

    int columns() const { return n_vectors * LANES<T>; }

    template <class Element>
    void pack(int in_sections, int in_width, int out_sections, int out_width, Element element) {
        sections_in = in_sections;
        width_in = in_width;
        stride_in = padded<T>(in_width);
        const int out_stride = padded<T>(out_width);
        n_vectors = out_sections * out_stride / LANES<T>;
        const int rows = in_sections * in_width, columns = n_vectors * LANES<T>;
        const size_t bytes = (size_t(rows) * columns * sizeof(T) + ALIGNMENT - 1) / ALIGNMENT;
        data.reset(static_cast<T*>(std::aligned_alloc(ALIGNMENT, (bytes + 1) * ALIGNMENT)));
        if (!data) throw std::bad_alloc();
        T* out = data.get();
        for (int first = 0; first < n_vectors; first += MAX_COLUMNS) {
            const int width = std::min(MAX_COLUMNS, n_vectors - first) * LANES<T>;
            for (int k = 0; k < rows; ++k)
                for (int c = 0; c < width; ++c) {
                    const int column = first * LANES<T> + c;
                    const int section = column / out_stride, feature = column % out_stride;
                    *out++ = feature < out_width ? T(element(k, section * out_width + feature)) : T(0);
                }
        }
    }
};

template <class T, int ROWS, int COLUMNS>
inline void product_block(const Packed<T>& b, const T* a, int a_stride, const T* panel, T* c,
                          int c_stride, const T* bias, bool add) {
    Vec<T> sum[ROWS][COLUMNS];
    for (int m = 0; m < ROWS; ++m)
        for (int n = 0; n < COLUMNS; ++n) {
            sum[m][n] = bias ? load(bias + n * LANES<T>) : Vec<T>{};
            if (add) sum[m][n] += load(c + m * c_stride + n * LANES<T>);
        }
    for (int section = 0; section < b.sections_in; ++section) {
        const T* row = a + section * b.stride_in;
        for (int k = 0; k < b.width_in; ++k) {
            Vec<T> column[COLUMNS];
            for (int n = 0; n < COLUMNS; ++n) column[n] = load(panel + n * LANES<T>);
            panel += COLUMNS * LANES<T>;
            for (int m = 0; m < ROWS; ++m) {
                const Vec<T> x = splat(row[m * a_stride + k]);
                for (int n = 0; n < COLUMNS; ++n) sum[m][n] += x * column[n];
            }
        }
    }
    for (int m = 0; m < ROWS; ++m)
        for (int n = 0; n < COLUMNS; ++n) store(c + m * c_stride + n * LANES<T>, sum[m][n]);
}

template <class T, int COLUMNS, int ROWS>
inline void product_rows(int rows, const Packed<T>& b, const T* a, int a_stride, const T* panel,
                         T* c, int c_stride, const T* bias, bool add) {
    if (rows == ROWS)
        product_block<T, ROWS, COLUMNS>(b, a, a_stride, panel, c, c_stride, bias, add);
    else if constexpr (ROWS > 1)
        product_rows<T, COLUMNS, ROWS - 1>(rows, b, a, a_stride, panel, c, c_stride, bias, add);
}

template <class T, int COLUMNS>
inline void product_panel(int columns, int n_rows, const Packed<T>& b, const T* a, int a_stride,
                          const T* panel, T* c, int c_stride, const T* bias, bool add) {
    if (columns == COLUMNS) {
        const int n_blocks = (n_rows + MAX_ROWS - 1) / MAX_ROWS;
        for (int block = 0, row = 0; block < n_blocks; ++block) {  // blocks of nearly one height
            const int rows = (n_rows - row + n_blocks - block - 1) / (n_blocks - block);
            product_rows<T, COLUMNS, MAX_ROWS>(rows, b, a + row * a_stride, a_stride, panel,
                                               c + row * c_stride, c_stride, bias, add);
            row += rows;
        }
    } else if constexpr (COLUMNS > 1) {
        product_panel<T, COLUMNS - 1>(columns, n_rows, b, a, a_stride, panel, c, c_stride, bias, add);
    }
}

// c (+)= a b + bias, for n_rows rows.
template <class T>
void product(int n_rows, const Packed<T>& b, const T* a, int a_stride, T* c, int c_stride,
             const T* bias = nullptr, bool add = false) {
    const T* panel = b.data.get();
    const int rows_in = b.sections_in * b.width_in;
    for (int first = 0; first < b.n_vectors; first += MAX_COLUMNS) {
        const int columns = std::min(MAX_COLUMNS, b.n_vectors - first), at = first * LANES<T>;
        product_panel<T, MAX_COLUMNS>(columns, n_rows, b, a, a_stride, panel, c + at, c_stride,
                                      bias ? bias + at : nullptr, add);
        panel += rows_in * columns * LANES<T>;
    }
}

// x -> x sigmoid(x), and its derivative.
template <class T> void silu(int n, T* x, T* derivative) {
    for (int k = 0; k < n; k += LANES<T>) {
        const Vec<T> v = load(x + k), sigmoid = T(1) / (T(1) + vexp(-v));
        store(x + k, v * sigmoid);
        store(derivative + k, sigmoid * (T(1) + v * (T(1) - sigmoid)));
    }
}

template <class T> void multiply(int n, T* x, const T* by) {
    for (int k = 0; k < n; k += LANES<T>) store(x + k, load(x + k) * load(by + k));
}

template <class T> inline void root(int n, T* x) {
    for (int k = 0; k < n; ++k) x[k] = std::sqrt(x[k]);
}

// ------------------------------------------------------------------------------------- the model

struct Shape {
    int n_species, n_features, n_layers, n_radial, n_readout;
};

template <class T> struct Layer {
    Packed<T> filter;                             // (n_radial + 1) -> scalars [, v], r
    Packed<T> phi_in, phi_out, phi_in_t, phi_out_t;
    Packed<T> mix, mix_t, gate_in, gate_out, gate_in_t, gate_out_t;
    T *phi_in_bias, *phi_out_bias, *gate_in_bias, *gate_out_bias;
};

// Reads one array after another.
struct Reader {
    const double* at;
    const double* take(size_t n) {
        const double* here = at;
        at += n;
        return here;
    }
};

template <class T> class Model {
  public:
    Shape shape;
    int width, n_basis, basis_stride, hidden;  // padded features; n_radial + 1; padded readout
    double cutoff, epsilon, tiny_squared, radial_norm, message_scale;
    double coulomb, screening_length;
    double prior_coefficients[8] = {}, prior_exponents[8] = {};  // four, and zeros after them
    std::vector<double> wave_numbers, charges, charges_power;
    std::vector<Layer<T>> layers;
    Packed<T> readout_mix, readout_mix_t, readout_in, readout_in_t;
    T* readout_in_bias;
    T* readout_out;
    double readout_out_bias;
    T* embedding;   // (n_species, width)
    T* first_phi;   // (n_species, 3 width), of the first layer
    
    Model(const Shape& s, const double* constants, const double* numbers) : shape(s) {
        width = padded<T>(s.n_features);
        n_basis = s.n_radial + 1;
        basis_stride = padded<double>(n_basis);
        hidden = padded<T>(s.n_readout);
        cutoff = constants[0];
        epsilon = constants[1];
        tiny_squared = constants[2];
        radial_norm = constants[3];
        message_scale = constants[4];
        coulomb = constants[5];
        screening_length = constants[6];
        const double power = constants[7];
        std::copy(constants + 8, constants + 12, prior_coefficients);
        std::copy(constants + 12, constants + 16, prior_exponents);

        const int F = s.n_features, R = s.n_readout;
        Reader read{numbers};
        const double* z = read.take(s.n_species);
        charges.assign(z, z + s.n_species);
        for (double charge : charges) charges_power.push_back(std::pow(charge, power));
        const double* waves = read.take(s.n_radial);
        wave_numbers.assign(padded<double>(s.n_radial), 0.0);
        std::copy(waves, waves + s.n_radial, wave_numbers.begin());
        const double* table = read.take(size_t(s.n_species) * F);
        embedding = room(size_t(s.n_species) * width);
        for (int k = 0; k < s.n_species; ++k)
            for (int f = 0; f < F; ++f) embedding[k * width + f] = T(table[k * F + f]);

        layers.resize(s.n_layers);
        for (int l = 0; l < s.n_layers; ++l) {
            Layer<T>& layer = layers[l];
            const double* w = read.take(size_t(F) * F);
            layer.phi_in_bias = biased(read.take(F), 1, F);
            forth_and_back(layer.phi_in, layer.phi_in_t, w, 1, F, 1, F);
            w = read.take(size_t(3) * F * F);
            layer.phi_out_bias = biased(read.take(3 * F), 3, F);
            forth_and_back(layer.phi_out, layer.phi_out_t, w, 1, F, 3, F);
            const double* filter = read.take(size_t(3) * F * s.n_radial);
            const double* filter_bias = read.take(3 * F);
            const int n_radial = s.n_radial;
            const bool first = l == 0;  // no vectors yet: nothing to pass along them
            layer.filter.pack(1, n_basis, first ? 2 : 3, F, [=](int k, int n) {
                const int row = first && n >= F ? n + F : n;
                return k < n_radial ? filter[size_t(row) * n_radial + k] : filter_bias[row];
            });
            w = read.take(size_t(2) * F * F);
            forth_and_back(layer.mix, layer.mix_t, w, 1, F, 2, F);
            w = read.take(size_t(2) * F * F);
            layer.gate_in_bias = biased(read.take(F), 1, F);
            forth_and_back(layer.gate_in, layer.gate_in_t, w, 2, F, 1, F);
            w = read.take(size_t(3) * F * F);
            layer.gate_out_bias = biased(read.take(3 * F), 3, F);
            forth_and_back(layer.gate_out, layer.gate_out_t, w, 1, F, 3, F);
        }
        const double* w = read.take(size_t(F) * F);
        forth_and_back(readout_mix, readout_mix_t, w, 1, F, 1, F);
        w = read.take(size_t(2) * F * R);
        readout_in_bias = biased(read.take(R), 1, R);
        forth_and_back(readout_in, readout_in_t, w, 2, F, 1, R);
        readout_out = biased(read.take(R), 1, R);
        readout_out_bias = *read.take(1);

        first_phi = room(size_t(s.n_species) * 3 * width);
        T* h = room(size_t(s.n_species) * width);
        T* slope = room(size_t(s.n_species) * width);
        product(s.n_species, layers[0].phi_in, embedding, width, h, width, layers[0].phi_in_bias);
        silu(s.n_species * width, h, slope);
        product(s.n_species, layers[0].phi_out, h, width, first_phi, 3 * width,
                layers[0].phi_out_bias);
    }

    ~Model() {
        for (T* p : owned) std::free(p);
    }

  private:
    std::vector<T*> owned;

    T* room(size_t n) {
        const size_t bytes = (n * sizeof(T) / ALIGNMENT + 1) * ALIGNMENT;
        T* p = static_cast<T*>(std::aligned_alloc(ALIGNMENT, bytes));
        if (!p) throw std::bad_alloc();
        std::memset(static_cast<void*>(p), 0, bytes);
        owned.push_back(p);
        return p;
    }

    T* biased(const double* values, int sections, int size) {
        const int stride = padded<T>(size);
        T* out = room(size_t(sections) * stride);
        for (int s = 0; s < sections; ++s)
            for (int k = 0; k < size; ++k) out[s * stride + k] = T(values[s * size + k]);
        return out;
    }

    // A torch Linear (out, in), and its transpose for the way back.
    static void forth_and_back(Packed<T>& forth, Packed<T>& back, const double* w, int in_sections,
                               int in_width, int out_sections, int out_width) {
        const int n_in = in_sections * in_width;
        forth.pack(in_sections, in_width, out_sections, out_width,
                   [=](int k, int n) { return w[size_t(n) * n_in + k]; });
        back.pack(out_sections, out_width, in_sections, in_width,
                  [=](int k, int n) { return w[size_t(k) * n_in + n]; });
    }
};

// ---------------------------------------------------------------------------------------- threads

// Threads that help whoever calls. Work is cut into pieces that are taken on demand, and the caller
// waits for pieces that somebody has in hand, never for a thread as such: on a machine that others
// use, a thread that waits for its core holds up nothing. (A barrier for all threads, as OpenMP has
// it, made a step of 0.3 ms take 6 ms next to one busy process.)
class Team {
  public:
    // Calls piece(k) for every k below count; it must not throw.
    void run(int count, int threads, const std::function<void(int)>& piece) {
        std::unique_lock<std::mutex> mine(callers, std::try_to_lock);
        // Another caller has the team, or the process was forked and the threads stayed behind.
        if (threads < 2 || count < 2 || !mine.owns_lock() || getpid() != home) {
            for (int k = 0; k < count; ++k) piece(k);
            return;
        }
        hire(std::min(threads, count) - 1);
        {
            std::lock_guard<std::mutex> lock(mutex);
            job = &piece;
            n_pieces = count;
            next = 0;
            unfinished = count;
            places = std::min(threads, count) - 1;
            ++call;
        }
        wake.notify_all();
        work(piece, count);
        for (int spin = 0; unfinished.load() > 0; ++spin)
            if (spin > SPINS) std::this_thread::yield();
        std::unique_lock<std::mutex> lock(mutex);
        job = nullptr;
        left.wait(lock, [this] { return inside == 0; });
    }

  private:
    static constexpr int SPINS = 2000;
    std::mutex callers, mutex;
    std::condition_variable wake, left;
    const std::function<void(int)>* job = nullptr;
    int n_pieces = 0, places = 0, inside = 0, hired = 0;
    unsigned call = 0;
    std::atomic<int> next{0}, unfinished{0};
    const pid_t home = getpid();

    void work(const std::function<void(int)>& piece, int count) {
        for (int k; (k = next.fetch_add(1)) < count;) {
            piece(k);
            unfinished.fetch_sub(1);
        }
    }

    void hire(int wanted) {
        try {
            for (; hired < wanted; ++hired) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
            // The system gives no more threads: those that are there do the work.
        }
    }

    void serve() {
        unsigned seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return call != seen && job != nullptr && places > 0; });
            seen = call;
            --places;
            ++inside;
            const std::function<void(int)>* piece = job;
            const int count = n_pieces;
            lock.unlock();
            work(*piece, count);
            lock.lock();
            if (--inside == 0) left.notify_one();
        }
    }
};

// Never destroyed: its threads wait for work until the process ends.
Team& team = *new Team;

// ------------------------------------------------------------------------------------ workspaces

// Memory that is asked for once and used again; parts of it are handed out one after another.
class Workspace {
  public:
    void reserve(size_t bytes) {
        if (bytes > size) {
            std::free(base);
            base = nullptr;
            size = 0;
            const size_t rounded = (bytes / ALIGNMENT + 1) * ALIGNMENT;
            base = static_cast<char*>(std::aligned_alloc(ALIGNMENT, rounded));
            if (!base) throw std::bad_alloc();
            size = rounded;
        }
        used = 0;
    }
    template <class U> U* take(size_t n) {
        U* here = reinterpret_cast<U*>(base ? base + used : nullptr);
        used += (n * sizeof(U) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        return here;
    }
    size_t asked() const { return used; }
    void rewind() { used = 0; }
    size_t capacity() const { return size; }
    ~Workspace() { std::free(base); }

  private:
    char* base = nullptr;
    size_t size = 0, used = 0;
};

// Workspaces that nobody uses at the moment, the largest last.
class Pool {
  public:
    std::unique_ptr<Workspace> borrow() {
        std::lock_guard<std::mutex> lock(mutex);
        if (idle.empty()) return std::make_unique<Workspace>();
        std::unique_ptr<Workspace> taken = std::move(idle.back());
        idle.pop_back();
        return taken;
    }
    void give_back(std::unique_ptr<Workspace> workspace) {
        std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(workspace));
        std::sort(idle.begin(), idle.end(),
                  [](const auto& a, const auto& b) { return a->capacity() < b->capacity(); });
    }

  private:
    std::mutex mutex;
    std::vector<std::unique_ptr<Workspace>> idle;
};

Pool pool;

class Borrowed {
  public:
    Borrowed() : owned(pool.borrow()) {}
    ~Borrowed() { pool.give_back(std::move(owned)); }
    Workspace& operator*() { return *owned; }

  private:
    std::unique_ptr<Workspace> owned;
};

// ---------------------------------------------------------------------------------------- a block

// Atoms that see each other, and everything that is kept of them between the way there and back.
// A pair is directed: it belongs to one atom, its owner, and points to a neighbour. A row is what
// belongs to the length of a pair; both directions may share one.
template <class T> struct Block {
    const Model<T>& model;
    int n_atoms;
    size_t n_pairs, n_rows;
    const int32_t* species;
    size_t* start;      // (n_atoms + 1), first pair of each owner
    int32_t* neighbor;  // (n_pairs)
    int32_t* row;       // (n_pairs); nullptr: a pair is its own row
    T* unit[3];         // (n_pairs), from the owner to the neighbour
    double* inverse_d;  // (n_rows)
    double* repulsion;  // (n_rows), half of the prior of the pair
    double* repulsion_slope;
    T *basis, *basis_slope;  // (n_rows, basis_stride), envelope and scale in it
    double* pull;            // (n_pairs, 4): dE/dd and dE/du, the owner being the source
    std::vector<T*> v, phi, phi_slope, mixed, norm, inner, gate, gate_slope;  // by layer
    T *s, *gs[2], *gv[2];
    double* energies;  // (n_atoms)

    Block(const Model<T>& m, int atoms, size_t pairs, size_t rows, bool shared_rows)
        : model(m), n_atoms(atoms), n_pairs(pairs), n_rows(rows), shared(shared_rows) {}

    void take(Workspace& from) {
        const int w = model.width, L = model.shape.n_layers;
        const size_t n = n_atoms;
        start = from.take<size_t>(n + 1);
        neighbor = from.take<int32_t>(n_pairs);
        row = shared ? from.take<int32_t>(n_pairs) : nullptr;
        for (T*& u : unit) u = from.take<T>(n_pairs);
        inverse_d = from.take<double>(n_rows);
        repulsion = from.take<double>(n_rows);
        repulsion_slope = from.take<double>(n_rows);
        basis = from.take<T>(n_rows * model.basis_stride);
        basis_slope = from.take<T>(n_rows * model.basis_stride);
        pull = from.take<double>(n_pairs * 4);
        for (auto* list : {&v, &phi, &phi_slope, &mixed, &norm, &inner, &gate, &gate_slope})
            list->assign(L, nullptr);
        for (int l = 0; l < L; ++l) {
            if (l > 0) {
                v[l] = from.take<T>(n * 3 * w);
                phi[l] = from.take<T>(n * 3 * w);
                phi_slope[l] = from.take<T>(n * w);
            }
            mixed[l] = from.take<T>(n * 6 * w);
            norm[l] = from.take<T>(n * w);
            inner[l] = from.take<T>(n * w);
            gate[l] = from.take<T>(n * 3 * w);
            gate_slope[l] = from.take<T>(n * w);
        }
        s = from.take<T>(n * w);
        for (int k = 0; k < 2; ++k) {
            gs[k] = from.take<T>(n * w);
            gv[k] = from.take<T>(n * 3 * w);
        }
        energies = from.take<double>(n);
    }

    size_t row_of(size_t pair) const { return shared ? size_t(row[pair]) : pair; }
    const T* phi_of(int l, int atom) const {
        return l ? phi[l] + size_t(atom) * 3 * model.width
                 : model.first_phi + size_t(species[atom]) * 3 * model.width;
    }

    // Radial functions and the prior of one row.
    void measure(size_t r, double d, int species_i, int species_j) {
        const Model<T>& m = model;
        const double x = d / m.cutoff, inverse = 1.0 / d;
        const double x4 = x * x * x * x;
        double envelope = 0.0, envelope_slope = 0.0;
        if (x < 1.0) {
            envelope = 1.0 + x4 * x * (-21.0 + x * (35.0 - 15.0 * x));
            envelope_slope = x4 * (-105.0 + x * (210.0 - 105.0 * x)) / m.cutoff;
        }
        T* b = basis + r * m.basis_stride;
        T* slope = basis_slope + r * m.basis_stride;
        const double scale = m.message_scale, amplitude = scale * m.radial_norm * inverse;
        const int n = m.shape.n_radial;
        for (int k = 0; k < n; k += LANES<double>) {
            Vec<double> waves, sine, cosine;
            std::memcpy(&waves, m.wave_numbers.data() + k, sizeof waves);
            vsincos(waves * d, sine, cosine);
            const Vec<double> value = amplitude * sine;
            const Vec<double> change = amplitude * waves * cosine - value * inverse;
            const Vec<double> with = value * envelope;
            const Vec<double> with_slope = change * envelope + value * envelope_slope;
            for (int lane = 0; lane < LANES<double> && k + lane < n; ++lane) {
                b[k + lane] = T(with[lane]);
                slope[k + lane] = T(with_slope[lane]);
            }
        }
        b[n] = T(envelope * scale);
        slope[n] = T(envelope_slope * scale);
        inverse_d[r] = inverse;

        const double per_length =
            (m.charges_power[species_i] + m.charges_power[species_j]) / m.screening_length;
        double screening = 0.0, screening_slope = 0.0;
        for (int k = 0; k < 4; k += LANES<double>) {
            Vec<double> rates, terms;
            std::memcpy(&rates, m.prior_exponents + k, sizeof rates);
            std::memcpy(&terms, m.prior_coefficients + k, sizeof terms);
            rates *= per_length;
            terms *= vexp(-rates * d);
            screening += total<double>(terms);
            screening_slope -= total<double>(rates * terms);
        }
        const double coulomb =
            0.5 * m.coulomb * m.charges[species_i] * m.charges[species_j] * inverse;
        repulsion[r] = coulomb * screening * envelope;
        repulsion_slope[r] = coulomb * (screening_slope * envelope + screening * envelope_slope -
                                        screening * envelope * inverse);
    }

  private:
    bool shared;
};

// What one thread needs beside the block.
template <class T> struct Scratch {
    T *filter, *filter_slope, *v, *cat, *hidden, *hidden_slope, *wide, *gradient;
    Vec<T>* pulls;

    // n_atoms: of a part; n_rows: most rows of a segment; n_neighbors: most pairs of an owner
    void take(Workspace& from, const Model<T>& m, size_t n_atoms, size_t n_rows, size_t n_neighbors) {
        const size_t w = m.width, h = std::max(m.width, m.hidden);
        filter = from.take<T>(n_rows * 3 * w);
        filter_slope = from.take<T>(n_rows * 3 * w);
        v = from.take<T>(n_atoms * 3 * w);
        cat = from.take<T>(n_atoms * 2 * w);
        hidden = from.take<T>(n_atoms * h);
        hidden_slope = from.take<T>(n_atoms * h);
        wide = from.take<T>(n_atoms * 6 * w);
        gradient = from.take<T>(n_atoms * 3 * w);
        pulls = from.take<Vec<T>>(n_neighbors * 4);
    }
};

// Owners [first, last) with the rows [first_row, last_row) that their pairs have, and no others.
struct Segment {
    int first, last;
    size_t first_row, last_row;
};

// ------------------------------------------------------------------------------------- the layers

template <class T> void embed(Block<T>& b, int first, int last) {
    const int w = b.model.width;
    for (int i = first; i < last; ++i)
        std::memcpy(b.s + size_t(i) * w, b.model.embedding + size_t(b.species[i]) * w, w * sizeof(T));
}

// What the owners of a segment receive: into b.s, and into vectors `out` that begin at atom `base`.
template <class T>
void receive(Block<T>& b, int l, const Segment& part, Scratch<T>& use, T* out, int base) {
    const Model<T>& m = b.model;
    const int w = m.width, sections = l ? 3 : 2, columns = sections * w;
    product<T>(int(part.last_row - part.first_row), m.layers[l].filter,
               b.basis + part.first_row * m.basis_stride, m.basis_stride, use.filter, columns);
    const T* filter = use.filter;
    for (int i = part.first; i < part.last; ++i) {
        const size_t begin = b.start[i], end = b.start[i + 1];
        T* s_i = b.s + size_t(i) * w;
        const T* v_i = l ? b.v[l] + size_t(i) * 3 * w : nullptr;
        T* out_i = out + size_t(i - base) * 3 * w;
        for (int f = 0; f < w; f += LANES<T>) {
            Vec<T> s = load(s_i + f), x{}, y{}, z{};
            if (l) {
                x = load(v_i + f);
                y = load(v_i + w + f);
                z = load(v_i + 2 * w + f);
            }
            for (size_t p = begin; p < end; ++p) {
                const int j = b.neighbor[p];
                const T* by = filter + (b.row_of(p) - part.first_row) * columns + f;
                const T* phi = b.phi_of(l, j) + f;
                s += load(phi) * load(by);
                const Vec<T> along_r = load(phi + 2 * w) * load(by + (sections - 1) * w);
                x += along_r * b.unit[0][p];
                y += along_r * b.unit[1][p];
                z += along_r * b.unit[2][p];
                if (l) {
                    const Vec<T> along_v = load(phi + w) * load(by + w);
                    const T* v_j = b.v[l] + size_t(j) * 3 * w + f;
                    x += along_v * load(v_j);
                    y += along_v * load(v_j + w);
                    z += along_v * load(v_j + 2 * w);
                }
            }
            store(s_i + f, s);
            store(out_i + f, x);
            store(out_i + w + f, y);
            store(out_i + 2 * w + f, z);
        }
    }
}

// Squared norms of (n, 3, width at a stride), smoothed, and their roots.
template <class T>
void smooth_norms(int n, int w, const T* vectors, int stride, double epsilon, T* norms, int norm_stride) {
    const T squared = T(epsilon * epsilon);
    for (int i = 0; i < n; ++i) {
        T* norm = norms + size_t(i) * norm_stride;
        const T* x = vectors + size_t(i) * 3 * stride;
        for (int f = 0; f < w; ++f) {
            const T a = x[f], c = x[stride + f], d = x[2 * stride + f];
            norm[f] = a * a + c * c + d * d + squared;
        }
        root(w, norm);
    }
}

// Mixes scalars and vectors of atoms [first, last); `v` begins at atom `first` and is changed.
template <class T> void update(Block<T>& b, int l, int first, int last, Scratch<T>& use, T* v) {
    const Model<T>& m = b.model;
    const Layer<T>& layer = m.layers[l];
    const int w = m.width, n = last - first;
    T* mixed = b.mixed[l] + size_t(first) * 6 * w;
    T* norm = b.norm[l] + size_t(first) * w;
    T* inner = b.inner[l] + size_t(first) * w;
    T* gate = b.gate[l] + size_t(first) * 3 * w;
    T* s = b.s + size_t(first) * w;
    product(3 * n, layer.mix, v, w, mixed, 2 * w);
    smooth_norms(n, w, mixed + w, 2 * w, m.epsilon, norm, w);
    for (int i = 0; i < n; ++i) {
        const T* x = mixed + size_t(i) * 6 * w;
        T* into = inner + size_t(i) * w;
        for (int f = 0; f < w; f += LANES<T>)
            store(into + f, load(x + f) * load(x + w + f) + load(x + 2 * w + f) * load(x + 3 * w + f) +
                                load(x + 4 * w + f) * load(x + 5 * w + f));
        std::memcpy(use.cat + size_t(i) * 2 * w, s + size_t(i) * w, w * sizeof(T));
        std::memcpy(use.cat + size_t(i) * 2 * w + w, norm + size_t(i) * w, w * sizeof(T));
    }
    product(n, layer.gate_in, use.cat, 2 * w, use.hidden, w, layer.gate_in_bias);
    silu(n * w, use.hidden, b.gate_slope[l] + size_t(first) * w);
    product(n, layer.gate_out, use.hidden, w, gate, 3 * w, layer.gate_out_bias);
    for (int i = 0; i < n; ++i) {
        const T* a = gate + size_t(i) * 3 * w;
        const T* left = mixed + size_t(i) * 6 * w;
        for (int f = 0; f < w; f += LANES<T>) {
            const size_t at = size_t(i) * w + f;
            store(s + at, load(s + at) + load(a + 2 * w + f) + load(a + w + f) * load(inner + at));
            for (int axis = 0; axis < 3; ++axis) {
                T* into = v + (size_t(i) * 3 + axis) * w + f;
                store(into, load(into) + load(left + axis * 2 * w + f) * load(a + f));
            }
        }
    }
}

// What atoms [first, last) send in layer l; their vectors `v` are kept for it.
template <class T> void send(Block<T>& b, int l, int first, int last, Scratch<T>& use, const T* v) {
    const Layer<T>& layer = b.model.layers[l];
    const int w = b.model.width, n = last - first;
    std::memcpy(b.v[l] + size_t(first) * 3 * w, v, size_t(n) * 3 * w * sizeof(T));
    product(n, layer.phi_in, b.s + size_t(first) * w, w, use.hidden, w, layer.phi_in_bias);
    silu(n * w, use.hidden, b.phi_slope[l] + size_t(first) * w);
    product(n, layer.phi_out, use.hidden, w, b.phi[l] + size_t(first) * 3 * w, 3 * w,
            layer.phi_out_bias);
}

// Energies of atoms [first, last), and the gradients of their scalars and vectors into gs and gv,
// both of which begin at atom `first`.
template <class T>
void read_out(Block<T>& b, int first, int last, Scratch<T>& use, const T* v, T* gs, T* gv) {
    const Model<T>& m = b.model;
    const int w = m.width, h = m.hidden, n = last - first;
    T* mixed = use.wide;
    product(3 * n, m.readout_mix, v, w, mixed, w);
    smooth_norms(n, w, mixed, w, m.epsilon, use.cat + w, 2 * w);
    for (int i = 0; i < n; ++i)
        std::memcpy(use.cat + size_t(i) * 2 * w, b.s + size_t(first + i) * w, w * sizeof(T));
    product(n, m.readout_in, use.cat, 2 * w, use.hidden, h, m.readout_in_bias);
    silu(n * h, use.hidden, use.hidden_slope);
    for (int i = 0; i < n; ++i) {
        Vec<T> sum{};
        T* slope = use.hidden_slope + size_t(i) * h;
        for (int k = 0; k < h; k += LANES<T>) {
            const Vec<T> out = load(m.readout_out + k);
            sum += load(use.hidden + size_t(i) * h + k) * out;
            store(slope + k, load(slope + k) * out);
        }
        b.energies[first + i] = double(T(total<T>(sum) + m.readout_out_bias));
    }
    T* g = use.gradient;  // (n, 2 w)
    product(n, m.readout_in_t, use.hidden_slope, h, g, 2 * w);
    for (int i = 0; i < n; ++i)
        for (int f = 0; f < w; f += LANES<T>) {
            store(gs + size_t(i) * w + f, load(g + size_t(i) * 2 * w + f));
            const Vec<T> by = load(g + size_t(i) * 2 * w + w + f) / load(use.cat + size_t(i) * 2 * w + w + f);
            for (int axis = 0; axis < 3; ++axis) {
                T* x = mixed + (size_t(i) * 3 + axis) * w + f;
                store(x, load(x) * by);
            }
        }
    product(3 * n, m.readout_mix_t, mixed, w, gv, w);
}

// Gradients before the update of layer l from those after it, in place; both begin at `first`.
template <class T>
void update_back(Block<T>& b, int l, int first, int last, Scratch<T>& use, T* gs, T* gv) {
    const Model<T>& m = b.model;
    const Layer<T>& layer = m.layers[l];
    const int w = m.width, n = last - first;
    const T* mixed = b.mixed[l] + size_t(first) * 6 * w;
    const T* norm = b.norm[l] + size_t(first) * w;
    const T* inner = b.inner[l] + size_t(first) * w;
    const T* gate = b.gate[l] + size_t(first) * 3 * w;
    T* g_gate = use.wide;  // (n, 3 w)
    for (int i = 0; i < n; ++i) {
        const T* left = mixed + size_t(i) * 6 * w;
        const T* g_v = gv + size_t(i) * 3 * w;
        T* g = g_gate + size_t(i) * 3 * w;
        for (int f = 0; f < w; f += LANES<T>) {
            const size_t at = size_t(i) * w + f;
            store(g + f, load(g_v + f) * load(left + f) + load(g_v + w + f) * load(left + 2 * w + f) +
                             load(g_v + 2 * w + f) * load(left + 4 * w + f));
            store(g + w + f, load(gs + at) * load(inner + at));
            store(g + 2 * w + f, load(gs + at));
        }
    }
    product(n, layer.gate_out_t, g_gate, 3 * w, use.hidden, w);
    multiply(n * w, use.hidden, b.gate_slope[l] + size_t(first) * w);
    T* g_cat = use.cat;
    product(n, layer.gate_in_t, use.hidden, w, g_cat, 2 * w);
    T* g_mixed = use.wide;  // (3 n, 2 w)
    for (int i = 0; i < n; ++i) {
        const T* left = mixed + size_t(i) * 6 * w;
        const T* a = gate + size_t(i) * 3 * w;
        for (int f = 0; f < w; f += LANES<T>) {
            const size_t at = size_t(i) * w + f;
            const Vec<T> g_inner = load(gs + at) * load(a + w + f);
            const Vec<T> g_norm = load(g_cat + size_t(i) * 2 * w + w + f) / load(norm + at);
            const Vec<T> a_vv = load(a + f);
            for (int axis = 0; axis < 3; ++axis) {
                const Vec<T> x = load(left + axis * 2 * w + f), y = load(left + axis * 2 * w + w + f);
                T* into = g_mixed + (size_t(i) * 3 + axis) * 2 * w + f;
                store(into, load(gv + (size_t(i) * 3 + axis) * w + f) * a_vv + g_inner * y);
                store(into + w, g_inner * x + g_norm * y);
            }
            store(gs + at, load(gs + at) + load(g_cat + size_t(i) * 2 * w + f));
        }
    }
    product<T>(3 * n, layer.mix_t, g_mixed, 2 * w, gv, w, nullptr, true);
}

// The way back through the messages of layer l, for sources that own the pairs of a segment.
//
// gs, gv: of all receivers, after the messages. Into `g_phi` (of this segment's atoms, from `base`
// on) go the gradients of what was sent, and into g_v those of the vectors that were sent along.
template <class T>
void receive_back(Block<T>& b, int l, const Segment& part, Scratch<T>& use, const T* gs, const T* gv,
                  T* g_phi, T* g_v, int base) {
    const Model<T>& m = b.model;
    const int w = m.width, sections = l ? 3 : 2, columns = sections * w;
    const int rows = int(part.last_row - part.first_row);
    const size_t at = part.first_row * m.basis_stride;
    product<T>(rows, m.layers[l].filter, b.basis + at, m.basis_stride, use.filter, columns);
    product<T>(rows, m.layers[l].filter, b.basis_slope + at, m.basis_stride, use.filter_slope, columns);
    for (int j = part.first; j < part.last; ++j) {
        const size_t begin = b.start[j], end = b.start[j + 1];
        for (size_t k = 0; k < (end - begin) * 4; ++k) use.pulls[k] = Vec<T>{};
        const T* phi = b.phi_of(l, j);
        const T* v_j = l ? b.v[l] + size_t(j) * 3 * w : nullptr;
        for (int f = 0; f < w; f += LANES<T>) {
            const Vec<T> phi_s = load(phi + f), phi_r = load(phi + 2 * w + f);
            Vec<T> phi_v{}, x{}, y{}, z{}, g_s{}, g_along{}, g_r{}, gx{}, gy{}, gz{};
            if (l) {
                phi_v = load(phi + w + f);
                x = load(v_j + f);
                y = load(v_j + w + f);
                z = load(v_j + 2 * w + f);
                gx = load(gv + size_t(j) * 3 * w + f);
                gy = load(gv + size_t(j) * 3 * w + w + f);
                gz = load(gv + size_t(j) * 3 * w + 2 * w + f);
            }
            for (size_t p = begin; p < end; ++p) {
                const size_t i = b.neighbor[p], r = (b.row_of(p) - part.first_row) * columns + f;
                const T *by = use.filter + r, *slope = use.filter_slope + r;
                const T* g_i = gv + i * 3 * w + f;
                const Vec<T> gs_i = load(gs + i * w + f);
                const Vec<T> a = load(g_i), c = load(g_i + w), d = load(g_i + 2 * w);
                // From the source to its receiver; the unit vector of the message is its opposite.
                const Vec<T> dot_u = -(a * b.unit[0][p] + c * b.unit[1][p] + d * b.unit[2][p]);
                const Vec<T> by_r = load(by + (sections - 1) * w);
                const Vec<T> along_r = phi_r * by_r;
                Vec<T> slopes = gs_i * phi_s * load(slope) +
                                dot_u * phi_r * load(slope + (sections - 1) * w);
                if (l) {
                    const Vec<T> dot_v = a * x + c * y + d * z;
                    const Vec<T> by_v = load(by + w), along_v = phi_v * by_v;
                    slopes += dot_v * phi_v * load(slope + w);
                    g_s += gs_i * load(by);
                    g_along += dot_v * by_v;
                    g_r += dot_u * by_r;
                    gx += a * along_v;
                    gy += c * along_v;
                    gz += d * along_v;
                }
                Vec<T>* pull = use.pulls + (p - begin) * 4;
                pull[0] += slopes;
                pull[1] += a * along_r;
                pull[2] += c * along_r;
                pull[3] += d * along_r;
            }
            if (l) {
                T* g = g_phi + size_t(j - base) * 3 * w + f;
                store(g, g_s);
                store(g + w, g_along);
                store(g + 2 * w, g_r);
                T* to = g_v + size_t(j - base) * 3 * w + f;
                store(to, gx);
                store(to + w, gy);
                store(to + 2 * w, gz);
            }
        }
        for (size_t p = begin; p < end; ++p)
            for (int k = 0; k < 4; ++k) b.pull[p * 4 + k] += total<T>(use.pulls[(p - begin) * 4 + k]);
    }
}

// Gradients before layer l sent its messages: gs (from `first` on) gains what `g_phi` brings.
template <class T>
void send_back(Block<T>& b, int l, int first, int last, Scratch<T>& use, const T* g_phi, T* gs) {
    const Layer<T>& layer = b.model.layers[l];
    const int w = b.model.width, n = last - first;
    product(n, layer.phi_out_t, g_phi, 3 * w, use.hidden, w);
    multiply(n * w, use.hidden, b.phi_slope[l] + size_t(first) * w);
    product<T>(n, layer.phi_in_t, use.hidden, w, gs, w, nullptr, true);
}

// From what is known of each pair to the gradient of every position, shape (n_atoms, 3).
template <class T> void gather_forces(const Block<T>& b, double* gradient) {
    std::fill(gradient, gradient + size_t(b.n_atoms) * 3, 0.0);
    for (int j = 0; j < b.n_atoms; ++j)
        for (size_t p = b.start[j]; p < b.start[j + 1]; ++p) {
            const size_t r = b.row_of(p);
            const double* pull = b.pull + p * 4;
            // dE/dr of the vector from the receiver to the source, which is against `unit`.
            double along = 0.0, u[3];
            for (int k = 0; k < 3; ++k) {
                u[k] = -double(b.unit[k][p]);
                along += pull[1 + k] * u[k];
            }
            const double radial = pull[0] + b.repulsion_slope[r] - along * b.inverse_d[r];
            double* other = gradient + size_t(b.neighbor[p]) * 3;
            for (int k = 0; k < 3; ++k) {
                const double g = radial * u[k] + pull[1 + k] * b.inverse_d[r];
                gradient[j * 3 + k] += g;
                other[k] -= g;
            }
        }
}

// One layer there for atoms [first, last), given as segments; the last one turns round.
template <class T>
void forth(Block<T>& b, int l, const Segment* parts, int n_parts, Scratch<T>& use, T* gs, T* gv) {
    const int first = parts[0].first, last = parts[n_parts - 1].last, w = b.model.width;
    if (l == 0) embed(b, first, last);
    for (int k = 0; k < n_parts; ++k) receive(b, l, parts[k], use, use.v, first);
    update(b, l, first, last, use, use.v);
    if (l + 1 < b.model.shape.n_layers) {
        send(b, l + 1, first, last, use, use.v);
        return;
    }
    gs += size_t(first) * w;
    gv += size_t(first) * 3 * w;
    read_out(b, first, last, use, use.v, gs, gv);
    update_back(b, l, first, last, use, gs, gv);
}

// One layer back: from gradients after the messages of layer l to those after layer l - 1's.
template <class T>
void back(Block<T>& b, int l, const Segment* parts, int n_parts, Scratch<T>& use, const T* gs,
          const T* gv, T* gs_next, T* gv_next) {
    const int first = parts[0].first, last = parts[n_parts - 1].last, w = b.model.width;
    T* g_s = gs_next + size_t(first) * w;
    T* g_v = gv_next + size_t(first) * 3 * w;
    for (int k = 0; k < n_parts; ++k)
        receive_back(b, l, parts[k], use, gs, gv, use.gradient, g_v, first);
    if (l == 0) return;
    std::memcpy(g_s, gs + size_t(first) * w, size_t(last - first) * w * sizeof(T));
    send_back(b, l, first, last, use, use.gradient, g_s);
    update_back(b, l - 1, first, last, use, g_s, g_v);
}

// ------------------------------------------------------------------------------------ evaluations

struct Units {
    double length, energy, force;  // angstrom and eV per unit of OpenMM's, and back
};

// Copies [first_copy, last_copy) of one molecule, by one thread.
template <class T>
void molecules(const Model<T>& m, int n, const int32_t* species, int first_copy, int last_copy,
               const double* positions, const Units& units, double* energies, double* forces) {
    const int copies = last_copy - first_copy, n_atoms = copies * n;
    const size_t most_rows = size_t(n) * (n - 1) / 2;
    Borrowed borrowed;
    Workspace& memory = *borrowed;
    Block<T> b(m, n_atoms, size_t(copies) * n * (n - 1), copies * most_rows, true);
    Scratch<T> use;
    std::vector<int32_t> kinds(n_atoms);
    double* gradient = nullptr;
    int32_t* row_of = nullptr;
    double* vectors = nullptr;
    for (int pass = 0; pass < 2; ++pass) {  // once to see how much, once to take it
        if (pass) memory.reserve(memory.asked());
        else memory.rewind();
        b.take(memory);
        use.take(memory, m, n_atoms, most_rows, n);
        gradient = memory.take<double>(size_t(n_atoms) * 3);
        row_of = memory.take<int32_t>(size_t(n) * n);
        vectors = memory.take<double>(most_rows * 3);
    }
    for (int k = 0; k < n_atoms; ++k) kinds[k] = species[k % n];
    b.species = kinds.data();

    std::vector<Segment> parts(copies);
    std::vector<bool> lost(copies, false);
    size_t rows = 0, pairs = 0;
    for (int copy = 0; copy < copies; ++copy) {
        const double* x = positions + size_t(first_copy + copy) * n * 3;
        for (int k = 0; k < 3 * n; ++k) lost[copy] = lost[copy] || !std::isfinite(x[k]);
        const size_t first_row = rows;
        for (int i = 0; i < n; ++i)
            for (int j = i + 1; j < n; ++j) {
                double r[3], squared = m.tiny_squared;
                for (int k = 0; k < 3; ++k) {
                    r[k] = (x[3 * j + k] - x[3 * i + k]) * units.length;
                    squared += r[k] * r[k];
                }
                const double d = std::sqrt(squared);
                const bool near = d < m.cutoff && !lost[copy];
                row_of[i * n + j] = row_of[j * n + i] = near ? int32_t(rows) : -1;
                if (!near) continue;
                std::copy(r, r + 3, vectors + (rows - first_row) * 3);
                b.measure(rows++, d, species[i], species[j]);
            }
        for (int i = 0; i < n; ++i) {
            b.start[copy * n + i] = pairs;
            for (int j = 0; j < n; ++j) {
                if (j == i || row_of[i * n + j] < 0) continue;
                const size_t row = row_of[i * n + j];
                const double* r = vectors + (row - first_row) * 3;
                b.neighbor[pairs] = copy * n + j;
                b.row[pairs] = int32_t(row);
                for (int k = 0; k < 3; ++k)
                    b.unit[k][pairs] = T((i < j ? r[k] : -r[k]) * b.inverse_d[row]);
                ++pairs;
            }
        }
        parts[copy] = {copy * n, (copy + 1) * n, first_row, rows};
    }
    b.start[n_atoms] = pairs;
    std::fill(b.pull, b.pull + pairs * 4, 0.0);

    const int L = m.shape.n_layers;
    for (int l = 0; l < L; ++l) forth(b, l, parts.data(), copies, use, b.gs[0], b.gv[0]);
    if (forces) {
        for (int l = L - 1, k = 0; l >= 0; --l, k ^= 1)
            back(b, l, parts.data(), copies, use, b.gs[k], b.gv[k], b.gs[k ^ 1], b.gv[k ^ 1]);
        gather_forces(b, gradient);
    }

    const double nothing = std::numeric_limits<double>::quiet_NaN();
    for (int copy = 0; copy < copies; ++copy) {
        double energy = 0.0, prior = 0.0;
        for (int i = copy * n; i < (copy + 1) * n; ++i) energy += b.energies[i];
        for (size_t r = parts[copy].first_row; r < parts[copy].last_row; ++r)
            prior += 2.0 * b.repulsion[r];
        energies[first_copy + copy] = lost[copy] ? nothing : (energy + prior) * units.energy;
        if (!forces) continue;
        double* f = forces + size_t(first_copy + copy) * n * 3;
        for (int k = 0; k < 3 * n; ++k)
            f[k] = lost[copy] ? nothing : -gradient[size_t(copy) * n * 3 + k] * units.force;
    }
}

constexpr int PART_ATOMS = 32;  // of a large structure, given to a thread at a time

// One large structure whose pairs are known, sorted by owner; r_ij in angstrom.
template <class T>
void structure(const Model<T>& m, int n, const int32_t* species, size_t n_pairs, const int64_t* idx_i,
               const int64_t* idx_j, const double* r_ij, const Units& units, double* energy,
               double* forces, int n_threads) {
    Borrowed borrowed;
    Workspace& memory = *borrowed;
    Block<T> b(m, n, n_pairs, n_pairs, false);
    double* gradient = nullptr;
    Segment* parts = nullptr;
    for (int pass = 0; pass < 2; ++pass) {
        if (pass) memory.reserve(memory.asked());
        else memory.rewind();
        b.take(memory);
        gradient = memory.take<double>(size_t(n) * 3);
        parts = memory.take<Segment>(n);
    }
    b.species = species;
    size_t most = 0;
    for (size_t p = 0, i = 0; i < size_t(n); ++i) {
        b.start[i] = p;
        while (p < n_pairs && size_t(idx_i[p]) == i) ++p;
        parts[i] = {int(i), int(i) + 1, b.start[i], p};
        most = std::max(most, p - b.start[i]);
    }
    b.start[n] = n_pairs;
    const int n_parts = (n + PART_ATOMS - 1) / PART_ATOMS, L = m.shape.n_layers;
    std::atomic<bool> short_of_memory{false};
    const auto each_part = [&](const std::function<void(Scratch<T>&, int, int)>& phase) {
        team.run(n_parts, n_threads, [&](int part) {
            if (short_of_memory) return;
            try {
                Borrowed mine;
                Scratch<T> use;
                for (int pass = 0; pass < 2; ++pass) {
                    if (pass) (*mine).reserve((*mine).asked());
                    else (*mine).rewind();
                    use.take(*mine, m, PART_ATOMS, most, most);
                }
                phase(use, part * PART_ATOMS, std::min(n, (part + 1) * PART_ATOMS));
            } catch (const std::bad_alloc&) {
                short_of_memory = true;
            }
        });
    };
    each_part([&](Scratch<T>&, int first, int last) {
        for (size_t p = b.start[first]; p < b.start[last]; ++p) {
            const double* r = r_ij + p * 3;
            const double d = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2] + m.tiny_squared);
            b.neighbor[p] = int32_t(idx_j[p]);
            b.measure(p, d, species[idx_i[p]], species[idx_j[p]]);
            for (int k = 0; k < 3; ++k) b.unit[k][p] = T(r[k] * b.inverse_d[p]);
            std::fill(b.pull + p * 4, b.pull + p * 4 + 4, 0.0);
        }
    });
    for (int l = 0; l < L; ++l)
        each_part([&](Scratch<T>& use, int first, int last) {
            forth(b, l, parts + first, last - first, use, b.gs[0], b.gv[0]);
        });
    for (int l = L - 1, k = 0; l >= 0; --l, k ^= 1)
        each_part([&](Scratch<T>& use, int first, int last) {
            back(b, l, parts + first, last - first, use, b.gs[k], b.gv[k], b.gs[k ^ 1], b.gv[k ^ 1]);
        });
    if (short_of_memory) throw std::bad_alloc();
    gather_forces(b, gradient);
    double sum = 0.0, prior = 0.0;
    for (int i = 0; i < n; ++i) sum += b.energies[i];
    for (size_t r = 0; r < n_pairs; ++r) prior += b.repulsion[r];
    *energy = (sum + prior) * units.energy;
    for (size_t k = 0; k < size_t(n) * 3; ++k) forces[k] = -gradient[k] * units.force;
}

// Copies that are evaluated together: enough rows that the weights are read for many of them, and
// few enough that what is kept of them stays in a core's cache.
constexpr int GROUP_ATOMS = 104;

// Below so many multiply-adds (about 0.1 ms) calling another thread costs more than it brings.
constexpr double PRODUCTS_A_THREAD = 6e6;

template <class T>
void all_molecules(const Model<T>& m, int n, const int32_t* species, int n_copies,
                   const double* positions, const Units& units, double* energies, double* forces,
                   int n_threads) {
    const double w = m.width;
    const double products = double(n_copies) * n * w * (62.0 * w + 8.0 * m.n_basis * (n - 1));
    const int worth = 1 + int(products / PRODUCTS_A_THREAD);
    const int threads = std::max(1, std::min(n_threads, std::min(n_copies, worth)));
    const int rounds =
        std::max(1, int((double(n_copies) * n / (double(threads) * GROUP_ATOMS)) + 0.999));
    const int n_groups = std::min(n_copies, rounds * threads);
    std::atomic<bool> short_of_memory{false};
    team.run(n_groups, threads, [&](int group) {
        const int first = int(int64_t(n_copies) * group / n_groups);
        const int last = int(int64_t(n_copies) * (group + 1) / n_groups);
        try {
            molecules(m, n, species, first, last, positions, units, energies, forces);
        } catch (const std::bad_alloc&) {
            short_of_memory = true;
        }
    });
    if (short_of_memory) throw std::bad_alloc();
}

struct Handle {
    std::unique_ptr<Model<float>> single;
    std::unique_ptr<Model<double>> twice;
};

constexpr int OUT_OF_MEMORY = 1;

}  // namespace

extern "C" {

// shape: n_species, n_features, n_layers, n_radial, n_readout; constants and numbers as in the
// constructor of Model. Returns nullptr when there is no memory.
void* omm_mlff_model(int float64, const int32_t* shape, const double* constants, const double* numbers) {
    const Shape s{shape[0], shape[1], shape[2], shape[3], shape[4]};
    try {
        auto handle = std::make_unique<Handle>();
        if (float64) handle->twice = std::make_unique<Model<double>>(s, constants, numbers);
        else handle->single = std::make_unique<Model<float>>(s, constants, numbers);
        return handle.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void omm_mlff_forget(void* model) { delete static_cast<Handle*>(model); }

// Energies (n_copies) and forces (n_copies * n_atoms, 3) of copies of one molecule. units: angstrom
// per unit of length, units of energy per eV, units of force per eV/angstrom. Without room for forces
// (nullptr) there are none, in a third of the time.
int omm_mlff_molecules(void* model, int n_atoms, int n_copies, const int32_t* species,
                       const double* positions, const double* units, double* energies,
                       double* forces, int n_threads) {
    const Handle& handle = *static_cast<Handle*>(model);
    const Units u{units[0], units[1], units[2]};
    try {
        if (handle.twice)
            all_molecules(*handle.twice, n_atoms, species, n_copies, positions, u, energies, forces, n_threads);
        else
            all_molecules(*handle.single, n_atoms, species, n_copies, positions, u, energies, forces, n_threads);
        return 0;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}

// Energy (1) and forces (n_atoms, 3) of one structure; pairs in both directions, sorted by idx_i,
// r_ij from i to j in angstrom.
int omm_mlff_structure(void* model, int n_atoms, const int32_t* species, int64_t n_pairs,
                       const int64_t* idx_i, const int64_t* idx_j, const double* r_ij,
                       const double* units, double* energy, double* forces, int n_threads) {
    const Handle& handle = *static_cast<Handle*>(model);
    const Units u{units[0], units[1], units[2]};
    try {
        if (handle.twice)
            structure(*handle.twice, n_atoms, species, size_t(n_pairs), idx_i, idx_j, r_ij, u, energy, forces, n_threads);
        else
            structure(*handle.single, n_atoms, species, size_t(n_pairs), idx_i, idx_j, r_ij, u, energy, forces, n_threads);
        return 0;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}
}

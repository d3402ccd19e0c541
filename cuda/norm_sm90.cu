// Hopper's group norm of maps that the chip's registers do not hold at once: group_norm_fused (cuda/norm.cu), except
// that rows lie in shared memory, twice as many, and that a cluster takes one slab after another. Grid (clusters, 1,
// parts of the rows). A cluster begins at the last slabs: what the kernel before wrote last is still in L2, and what this one
// writes last is what the next reads first.
//
// A thread's rows are a queue of RING vectors of 16 bytes of its own: nobody else reads them, so that nothing but its
// own copies has to be waited for. A place that is done with is filled at once with a row of a later slab, which
// arrives while this one is summed, exchanged and stored.
//
// cargo test --release --test kernels norm; cargo bench --bench kernels norm
#include "norm.cuh"

// 224 KiB of a block. RING in src/gpu/group_norm.rs.
constexpr int RING = 28;
// Rows that a thread reads before it uses the first.
constexpr int BATCH = 4;

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void copy_async_wait_but() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}
// Waits for the first `batches` batches of RING copies that were committed one by one.
__device__ __forceinline__ void wait_for_batches(int batches) {
    static_assert(RING == 7 * BATCH, "one case for each");
    switch (batches) {
        case 1: return copy_async_wait_but<RING - BATCH>();
        case 2: return copy_async_wait_but<RING - 2 * BATCH>();
        case 3: return copy_async_wait_but<RING - 3 * BATCH>();
        case 4: return copy_async_wait_but<RING - 4 * BATCH>();
        case 5: return copy_async_wait_but<RING - 5 * BATCH>();
        case 6: return copy_async_wait_but<RING - 6 * BATCH>();
        default: return copy_async_wait_but<0>();
    }
}

template <typename T> __device__ void group_norm_ring(const GroupNormArgs& a) {
    constexpr int V = VEC<T>, THREADS = GROUP_NORM_THREADS<T>;
    using Chunk = Vector<T, V>;
    extern __shared__ __align__(16) unsigned char queue[];  // Chunk [RING][THREADS]
    // Totals of one slab may be read while those of the next are written.
    __shared__ float2 of_warps[V][THREADS / 32], totals[2][V], statistics[V];
    const int channels = a.c / a.groups, groups = a.groups / a.slabs;
    const int width = groups * channels, vectors = width / V, lanes = THREADS / vectors;
    const int lane = threadIdx.x / vectors, column = threadIdx.x % vectors * V;
    const int warp = threadIdx.x / 32;
    const int part = (a.hw + gridDim.z - 1) / gridDim.z, first = blockIdx.z * part;
    // Rows of this thread: first + lane, first + lane + lanes, ... All threads' queues move by `places` for a slab.
    const int places = (part + lanes - 1) / lanes;
    const int rows = lane < lanes ? (min(part, a.hw - first) - lane + lanes - 1) / lanes : 0;

    // First elements of a slab, where all images' are counted.
    auto slab_of_x = [&](int slab) {
        const int image = slab / a.slabs;
        return static_cast<const T*>(a.x) + size_t(image) * a.hw * a.x_pitch + (slab - image * a.slabs) * width;
    };
    auto slab_of_out = [&](int slab) {
        const int image = slab / a.slabs;
        return static_cast<T*>(a.out) + size_t(image) * a.hw * a.out_pitch + (slab - image * a.slabs) * width;
    };
    auto next_place = [](int place) { return place == (RING - 1) * THREADS ? 0 : place + THREADS; };
    Chunk* mine = reinterpret_cast<Chunk*>(queue) + threadIdx.x;

    const int clusters = gridDim.x;
    int slab = a.b * a.slabs - 1 - blockIdx.x;
    // The next row to be copied.
    int ahead = slab, ahead_row = 0;
    const T* ahead_x = slab_of_x(slab) + size_t(first + lane) * a.x_pitch + column;
    auto copy_next = [&](int place) {
        if (ahead >= 0 && ahead_row < rows)
            copy_async_16(mine + place, ahead_x + size_t(ahead_row * lanes) * a.x_pitch);
        copy_async_commit();
        if (++ahead_row == places) {
            ahead_row = 0;
            ahead -= clusters;
            if (ahead >= 0) ahead_x = slab_of_x(ahead) + size_t(first + lane) * a.x_pitch + column;
        }
    };
#pragma unroll 1
    for (int i = 0; i < RING; i++) copy_next(i * THREADS);

    const Groups<V> group(lane < lanes ? column : 0, channels);
    Chunk weight = {}, bias = {};
    T shift = {};
    // What a thread needs of a slab besides its rows.
    auto prepare = [&](int slab) {
        const T* x = slab_of_x(slab);
        const int at = slab % a.slabs * width + column;
        if (lane < lanes) {
            weight = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.weight) + at);
            bias = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.bias) + at);
        }
        if (warp < groups) shift = x[warp * channels];
        return ChannelSums<T>(x, group, channels);
    };
    ChannelSums<T> sums = prepare(slab);
    int place = 0;
    for (int turn = 0; slab >= 0; turn ^= 1, slab -= clusters) {
        int reading = place;
        for (int i = 0; i < places; i += BATCH) {
            wait_for_batches(i / BATCH + 1);
            Chunk x[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++, reading = next_place(reading)) x[j] = mine[reading];
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                forget(x[j]);
                if (i + j < rows) sums.add(x[j]);
            }
        }
        sum_block(sums, group, 0, groups, of_warps, totals[turn]);
        sync_parts();
        if (warp < groups) {
            const float2 total = sum_of_parts(totals[turn] + warp);
            const float n = float(a.hw) * channels;
            if (threadIdx.x % 32 == 0) statistics[warp] = mean_rstd(total, n, to_float(shift), a.eps);
        }
        __syncthreads();
        const Affine<T> affine(weight, bias, statistics, group, 0);
        T* to = slab_of_out(slab) + size_t(first + lane) * a.out_pitch + column;
        if (slab >= clusters) sums = prepare(slab - clusters);
        reading = place;
        for (int i = 0; i < places; i += BATCH) {
            Chunk x[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++, reading = next_place(reading)) x[j] = mine[reading];
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                if (i + j >= places) break;
                forget(x[j]);
                if (i + j < rows)
                    *reinterpret_cast<Chunk*>(to + size_t((i + j) * lanes) * a.out_pitch) = affine(x[j], a.silu);
                copy_next(place);
                place = next_place(place);
            }
        }
    }
    wait_for_parts();
}

#define INSTANTIATE(NAME, T)                                              \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>)   \
        group_norm_sm90_##NAME(const __grid_constant__ GroupNormArgs a) { \
        read_soon(a.soon);                                                \
        after_previous_kernel();                                          \
        group_norm_ring<T>(a);                                            \
    }

INSTANTIATE(f16, half)
INSTANTIATE(bf16, __nv_bfloat16)

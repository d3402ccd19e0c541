// Convolution on Hopper: the product of conv.cu with tiles brought by the copy engine and multiplied by warpgroups.
//
//   out[b,y,x,n] = sum over ky,kx,c of  x[b, y*stride-pad+ky, x*stride-pad+kx, c] * weight[n,ky,kx,c]
//                + bias[n] + table[index[b],n] + residual[b,y,x,n]           (NHWC, f32 sum, rounded once)
//
// A tile of m is a box of pixels, tile_b images, tile_h rows, tile_w columns: cuda/conv_tile.cuh.
//
// With upsample the grid has parts of the output, each with 2x2 taps of its own: cuda/conv.cuh.
//
//   block (tile of m x n, part, split of k), 3 warpgroups:
//     producer, one thread:  for each k tile (64 channels of one tap), STAGES ahead:
//       wait until the slot is empty;  A [m,64] <- box of x;  B [n,64] <- box of weight
//     the producer's other warps:  offsets = bias + table row -> shared
//     two consumers, each half of the rows:  residual -> registers;
//       for each k tile:  wait until the slot is full;  sum += A B^T  (wgmma);  the slot is empty
//   one split:   sums -> shared -> + offset + residual -> out
//   many splits: the blocks of a cluster are the splits of one tile. Each puts its sums into shared memory, and each
//                finishes its share of the rows from the sums of all, split ^ rank after split ^ rank: no two read from the
//                same block at a time, and all add up the same tree, wherever in a tile a pixel is.
//
// Which tile for which shape: src/gpu/conv_sm90.rs.
// Test: cargo test --release --test kernels conv2d        Bench: cargo bench --bench kernels conv2d
#include "conv_tile.cuh"

constexpr int CONSUMERS = 2;     // warpgroups
constexpr int WARPGROUP = 128;
// Staged sums: of each 8 columns of a row, the first 4 lie in the row's first half, the others in its second, so that lanes
// with adjacent columns read adjacent 16 bytes. Floats between halves and rows, against bank conflicts:
constexpr int HALF_PAD = 4, PAD = 8;
// Named barriers.
constexpr int CONSUMERS_MET = 1, OFFSETS_READY = 2;

template <int VALUE> struct Int {
    static constexpr int value = VALUE;
};

__device__ __forceinline__ void consumers_sync() { named_sync(CONSUMERS_MET, CONSUMERS * WARPGROUP); }

// Whether rows of out and of the residual can be accessed 8 channels at a time.
template <typename T> __device__ __forceinline__ bool is_aligned(const Conv2dArgs& a) {
    uint64_t pointers = reinterpret_cast<uint64_t>(a.out) | reinterpret_cast<uint64_t>(a.residual);
    int counts = a.o | a.out_pitch | (a.residual ? a.residual_pitch : 0);
    return pointers % (8 * sizeof(T)) == 0 && counts % 8 == 0;
}

// v[i] = 8 sums of an item in COUNT splits, from what the blocks of the cluster have at from[i] and `second_half` floats
// further: those of `split ^ rank` for splits from `first` on, as far as there are so many, in pairs, then pairs of pairs.
template <int COUNT, int N>
__device__ __forceinline__ void sum_splits(float (&v)[N][8], const float* const (&from)[N], int second_half, int first,
                                           int splits, int rank) {
    float4 part[COUNT][N][2];
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
        const int split = rank ^ (first + n);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                part[n][i][half] = make_float4(0.f, 0.f, 0.f, 0.f);
                if (split < splits) part[n][i][half] = load_cluster(from[i] + half * second_half, split);
            }
    }
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int e = 0; e < 8; e++) {
            auto term = [&](int n) { return reinterpret_cast<const float*>(&part[n][i][e / 4])[e % 4]; };
            v[i][e] = term(0) + term(1);
            if constexpr (COUNT == 4) v[i][e] += term(2) + term(3);
        }
}

template <typename T, int BM, int BN, int STAGES>
__device__ __forceinline__ void conv2d(const Conv2dSm90Args& p) {
    constexpr int ROWS = BM / CONSUMERS;  // of a consumer
    constexpr int MI = ROWS / 64;         // products of a consumer
    constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE = A_BYTES + B_BYTES;
    constexpr int STAGED = BN + PAD, SECOND_HALF = BN / 2 + HALF_PAD;
    static_assert(B_BYTES % 1024 == 0, "tiles start at multiples of the swizzle's 1024 bytes");
    static_assert(BM * STAGED * 4 <= STAGES * STAGE, "sums are staged in the pipeline's memory");

    extern __shared__ __align__(1024) unsigned char shared[];
    uint64_t* full = reinterpret_cast<uint64_t*>(shared + STAGES * STAGE);
    uint64_t* empty = full + STAGES;
    float* offsets = reinterpret_cast<float*>(empty + STAGES);  // [images of the tile: 8 at most, BN]
    const Conv2dArgs& a = p.conv;
    const int warpgroup = threadIdx.x / WARPGROUP;

    // This block's tile and its share of k.
    const int n_tiles = (a.o + BN - 1) / BN;
    const Part part = part_of(a, blockIdx.y);
    if (blockIdx.x / n_tiles >= ConvTile::boxes(p, part)) return;
    const ConvTile tile(p, part, blockIdx.x / n_tiles, blockIdx.x % n_tiles * BN);
    const int n0 = tile.n0;
    // Called where it is needed, as a register is not to spare for it.
    auto first_k_tile = [&] { return static_cast<int>(blockIdx.z) * a.k_tiles_per_split; };
    auto count_k_tiles = [&] { return min(a.k_tiles_per_split, conv_k_tiles(a) - first_k_tile()); };

    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            barrier_init(&full[s], 1);
            barrier_init(&empty[s], CONSUMERS);
        }
        barrier_init_fence();
    }
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        give_registers<40>();
        if (threadIdx.x >= CONSUMERS * WARPGROUP + 32) {
            after_previous_kernel();
            for (int i = threadIdx.x - CONSUMERS * WARPGROUP - 32; i < p.tile_b * BN; i += WARPGROUP - 32) {
                const int image = min(tile.b0 + i / BN, a.b - 1), column = n0 + i % BN;
                float offset = 0.f;
                if (a.bias && column < a.o) offset = to_float(static_cast<const T*>(a.bias)[column]);
                if (a.table && column < a.o) {
                    const int64_t row = static_cast<int64_t>(a.index[image]) * a.table_pitch;
                    offset += to_float(static_cast<const T*>(a.table)[row + column]);
                }
                offsets[i] = offset;
            }
            named_arrive(OFFSETS_READY, (CONSUMERS + 1) * WARPGROUP - 32);
            return;
        }
        if (threadIdx.x != CONSUMERS * WARPGROUP) return;
        prefetch_map(&p.x);
        prefetch_map(&p.weight);
        auto copy_weight = [&](int slot, const KTile& k) {
            barrier_expect(&full[slot], STAGE);
            copy_box_3d(shared + slot * STAGE + A_BYTES, &p.weight, &full[slot], k.channel, tile.weight_tap(k), n0);
        };
        // Weights are there already; x is what the kernel before writes.
        const int k_tiles = count_k_tiles();
        KTile k(a, first_k_tile());
        for (int n = 0; n < min(STAGES, k_tiles); n++, k.next(a)) copy_weight(n, k);
        after_previous_kernel();
        k = KTile(a, first_k_tile());
        for (int n = 0; n < k_tiles; n++, k.next(a)) {
            const int slot = n % STAGES;
            if (n >= STAGES) {
                barrier_wait(&empty[slot], (n / STAGES - 1) & 1);
                copy_weight(slot, k);
            }
            tile.copy_x(p, k, shared + slot * STAGE, &full[slot]);
        }
        return;
    }

    take_registers<232>();
    after_previous_kernel();

    // What this thread finishes: 8 channels of pixels that lie STRIDE items apart, of this block's share of the tile.
    constexpr int CHUNKS = BN / 8, STRIDE = CONSUMERS * WARPGROUP, ITEMS = BM * CHUNKS / STRIDE;
    const int splits = a.splits, rank = splits > 1 ? cluster_rank() : 0;
    const int first_item = BM * rank / splits * CHUNKS + threadIdx.x, last_item = BM * (rank + 1) / splits * CHUNKS;
    const bool aligned = is_aligned<T>(a);
    // Long before it is needed.
    Vector<T, 8> residual[ITEMS] = {};
    if (aligned && a.residual) {
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            const int item = first_item + i * STRIDE, column = n0 + item % CHUNKS * 8;
            const int row = item < last_item && column < a.o ? tile.out_row(p, item / CHUNKS) : -1;
            if (row >= 0)
                residual[i] = *reinterpret_cast<const Vector<T, 8>*>(static_cast<const T*>(a.residual) +
                                                                     int64_t(row) * a.residual_pitch + column);
        }
    }

    const int k_tiles = count_k_tiles();
    float sum[MI][BN / 2];
    for (int n = 0; n < k_tiles; n++) {
        const int slot = n % STAGES;
        barrier_wait(&full[slot], n / STAGES & 1);
        const uint64_t at = tile_descriptor(shared + slot * STAGE + warpgroup * ROWS * BK * 2);
        const uint64_t bt = tile_descriptor(shared + slot * STAGE + A_BYTES);
#pragma unroll
        for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < BK / 16; step++)
#pragma unroll
            for (int mi = 0; mi < MI; mi++)
                // 16 halves of k are 32 bytes, 64 rows are 8192: in units of 16.
                Wgmma<BN>::run(T(), sum[mi], at + step * 2 + mi * 512, bt + step * 2, n > 0 || step > 0);
        wgmma_commit();
#pragma unroll
        for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
        // The products of the k tile before this one are done: its slot is free.
        wgmma_wait<1>();
        if (n > 0 && threadIdx.x % WARPGROUP == 0) barrier_arrive(&empty[(n - 1) % STAGES]);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int mi = 0; mi < MI; mi++) keep(sum[mi]);

    // Everything that was copied has been read, by both consumers: the pipeline's memory takes the sums.
    consumers_sync();
    float* staged = reinterpret_cast<float*>(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
#pragma unroll
    for (int mi = 0; mi < MI; mi++)
#pragma unroll
        for (int j = 0; j < BN / 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = warpgroup * ROWS + mi * 64 + warp * 16 + lane / 4 + h * 8;
                const int half = lane % 4 / 2 * SECOND_HALF + lane % 2 * 2;
                *reinterpret_cast<float2*>(staged + row * STAGED + j * 4 + half) =
                    make_float2(sum[mi][j * 4 + h * 2], sum[mi][j * 4 + h * 2 + 1]);
            }
    if (splits > 1) {
        cluster_sync();
    } else {
        consumers_sync();
    }
    named_sync(OFFSETS_READY, (CONSUMERS + 1) * WARPGROUP - 32);

    // Known anew: what was worked out of it for the residual would take registers from the products.
    int first = first_item;
    asm volatile("" : "+r"(first));
    auto place = [&](int item) { return staged + item / CHUNKS * STAGED + item % CHUNKS * 4; };
    auto add_offset = [&](float(&v)[8], int item) {
        const float* offset = offsets + (tile.image(item / CHUNKS) - tile.b0) * BN + item % CHUNKS * 8;
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] += offset[e];
    };
    // v = 8 sums of each of some items.
    auto one_split = [&](auto& v, const auto& from) {
#pragma unroll
        for (int i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
            *reinterpret_cast<float4*>(v[i]) = *reinterpret_cast<const float4*>(from[i]);
            *reinterpret_cast<float4*>(v[i] + 4) = *reinterpret_cast<const float4*>(from[i] + SECOND_HALF);
        }
    };
    auto two_splits = [&](auto& v, const auto& from) { sum_splits<2>(v, from, SECOND_HALF, 0, 2, rank); };
    auto many_splits = [&](auto& v, const auto& from) {
        sum_splits<4>(v, from, SECOND_HALF, 0, splits, rank);
        if (splits <= 4) return;
        constexpr int N = sizeof(v) / sizeof(v[0]);
        float more[N][8];
        sum_splits<4>(more, from, SECOND_HALF, 4, splits, rank);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int e = 0; e < 8; e++) v[i][e] += more[i][e];
    };
    // With at least so many splits; AT_ONCE items at a time, so that many loads are under way.
    auto finish = [&](auto least_splits, auto at_once, auto load) {
        constexpr int LEAST = decltype(least_splits)::value, AT_ONCE = decltype(at_once)::value;
        constexpr int MOST_ITEMS = ((BM + LEAST - 1) / LEAST * CHUNKS + STRIDE - 1) / STRIDE;
#pragma unroll
        for (int i0 = 0; i0 < MOST_ITEMS; i0 += AT_ONCE) {
            if (first + i0 * STRIDE >= last_item) break;
            float v[AT_ONCE][8];
            const float* from[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) from[i] = place(min(first + (i0 + i) * STRIDE, last_item - 1));
            load(v, from);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int item = first + (i0 + i) * STRIDE, column = n0 + item % CHUNKS * 8;
                const int row = item < last_item && column < a.o ? tile.out_row(p, item / CHUNKS) : -1;
                if (row < 0) continue;
                add_offset(v[i], item);
                forget(residual[i0 + i]);
                Vector<T, 8> u;
#pragma unroll
                for (int e = 0; e < 8; e++) u.v[e] = from_float<T>(v[i][e] + to_float(residual[i0 + i].v[e]));
                *reinterpret_cast<Vector<T, 8>*>(static_cast<T*>(a.out) + int64_t(row) * a.out_pitch + column) = u;
            }
        }
    };
    constexpr Int<ITEMS % 4 == 0 ? 4 : ITEMS % 5 == 0 ? 5 : 1> FEW;
    if (aligned && splits > 2) {
        finish(Int<3>(), Int<ITEMS % 2 == 0 ? 2 : 1>(), many_splits);
    } else if (aligned && splits == 2) {
        finish(Int<2>(), FEW, two_splits);
    } else if (aligned) {
        finish(Int<1>(), FEW, one_split);
    } else {
#pragma unroll 1
        for (int item = first; item < last_item; item += STRIDE) {
            const int column = n0 + item % CHUNKS * 8, row = column < a.o ? tile.out_row(p, item / CHUNKS) : -1;
            if (row < 0) continue;
            float v[1][8];
            const float* const from[1] = {place(item)};
            if (splits > 1) {
                many_splits(v, from);
            } else {
                one_split(v, from);
            }
            add_offset(v[0], item);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                if (column + e >= a.o) break;
                if (a.residual)
                    v[0][e] += to_float(static_cast<const T*>(a.residual)[int64_t(row) * a.residual_pitch + column + e]);
                static_cast<T*>(a.out)[int64_t(row) * a.out_pitch + column + e] = from_float<T>(v[0][e]);
            }
        }
    }
    if (splits > 1) cluster_wait_for_readers();
}

// Contents: conv2d_sm90_{f16,bf16}_{tile}. Grid (tiles of m * tiles of n, parts, splits), clusters of (1, 1, splits), 384
// threads, shared memory stages * ((tile m + tile n) * 128 + 16) + 8 * tile n * 4 bytes.
#define CONV2D(NAME, BM, BN, STAGES)                                                                                   \
    extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)                                       \
        conv2d_sm90_f16_##NAME(const __grid_constant__ Conv2dSm90Args p) {                                             \
        conv2d<half, BM, BN, STAGES>(p);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)                                       \
        conv2d_sm90_bf16_##NAME(const __grid_constant__ Conv2dSm90Args p) {                                            \
        conv2d<__nv_bfloat16, BM, BN, STAGES>(p);                                                                      \
    }
//     name      m    n    stages
CONV2D(256x128, 256, 128, 4)
CONV2D(128x256, 128, 256, 4)
CONV2D(128x160, 128, 160, 6)
CONV2D(128x128, 128, 128, 6)
CONV2D(128x80, 128, 80, 8)
CONV2D(128x64, 128, 64, 8)
CONV2D(128x16, 128, 16, 8)

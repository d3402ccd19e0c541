// Convolution on Hopper where each multiprocessor gets several tiles: what cuda/conv_sm90.cu computes, bit by bit, by
// warpgroups in turns ("ping-pong", as in CUTLASS): one multiplies its tile while the other finishes and writes its own.
//
// k tiles are short of L2's bandwidth (about 40 bytes a cycle and multiprocessor) before they are short of tensor cores. So
// the blocks of a cluster work on neighbouring boxes of pixels and the same channels, and each brings its share of the
// weight's tile to all of them (multicast).
//
//   cluster; its groups of tiles are cluster, cluster + clusters, ...; block r of it has box r of each; 3 warpgroups:
//     producer, one thread:  for each tile, each k tile (64 channels of one tap), STAGES ahead:
//       wait until the slot is empty in every block;  A [128,64] <- box of x;  rows of B [n,64] -> every block
//     consumer w of two, in turns:  for each tile w, w + 2, ...:
//       bias, residual and table row of the first 64 rows -> shared (cp.async)
//       for each split of k:
//         wait until the other has multiplied what comes before
//         for each k tile:  wait until the slot is full;  sum += A B^T (wgmma);  the slot is empty, say to every block
//         if there are several:  sum + sums kept of splits before -> kept, or they are all
//       each warp, on its own 16 of each 64 rows:
//         sums + bias + table row + residual, rounded -> shared (stmatrix) -> out, 16 bytes a thread
//
// Splits are there for the sake of few images, which the clusters of conv_sm90.cu compute. Here they only have to be added up
// in the same order. A pair of tiles goes split by split: a0 b0 a1 b1.., so that one's sums are kept while the other multiplies.
//
// Channels of out, all pitches and addresses are multiples of 8 halves. Which tile for which shape: src/gpu/conv_sm90.rs.
// Test: cargo test --release --test kernels conv2d        Bench: cargo bench --bench kernels conv2d
#include "conv_tile.cuh"

constexpr int CONSUMERS = 2;
constexpr int WARPGROUP = 128;
constexpr int BM = 128;
constexpr int MI = BM / 64;  // products of a consumer
constexpr int TURN = 1;      // named barriers, one for each consumer

// What a block multiplies without a pause, a split of a tile: the order of them all, as each warpgroup knows it.
struct Steps {
    const Conv2dArgs& a;
    int turns, k_tiles;  // tiles of this block; k tiles of each

    __device__ __forceinline__ explicit Steps(const Conv2dSm90Args& p)
        : a(p.conv),
          turns((p.groups - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x)),
          k_tiles(conv_k_tiles(p.conv)) {}

    // Whether the other consumer has a tile beside this one.
    __device__ __forceinline__ bool paired(int turn) const { return (turn ^ 1) < turns; }
    __device__ __forceinline__ int turn(int step) const {
        const int first = step / (2 * a.splits) * 2;
        return paired(first) ? first + step % 2 : first;
    }
    __device__ __forceinline__ int split(int step) const {
        const int of_pair = step % (2 * a.splits);
        return paired(step / (2 * a.splits) * 2) ? of_pair / 2 : of_pair;
    }
    // K tiles of a split.
    __device__ __forceinline__ int count(int split) const {
        return min(a.k_tiles_per_split, k_tiles - split * a.k_tiles_per_split);
    }
    // K tiles before a step.
    __device__ __forceinline__ int before(int turn, int split) const {
        const int tiles = paired(turn) ? 2 : 1;
        return (turn & ~1) * k_tiles + tiles * split * a.k_tiles_per_split + (turn & 1 ? count(split) : 0);
    }
};

// Group `group` of tiles, and of it the one of this block. Parts follow each other, so that at one time blocks read the same
// weights; in a part, groups with the same pixels do.
template <int BN, int BLOCKS>
__device__ __forceinline__ ConvTile conv_tile(const Conv2dSm90Args& p, int group) {
    const int n_tiles = (p.conv.o + BN - 1) / BN;
    Part part = part_of(p.conv, 0);
    for (int next = 1;; next++) {
        const int groups = (ConvTile::boxes(p, part) + BLOCKS - 1) / BLOCKS * n_tiles;
        if (group < groups) break;
        group -= groups;
        part = part_of(p.conv, next);
    }
    return ConvTile(p, part, group / n_tiles * BLOCKS + int(cluster_rank()), group % n_tiles * BN);
}

template <typename T, int BN, int STAGES, int BLOCKS>
__device__ __forceinline__ void conv2d(const Conv2dSm90Args& p) {
    constexpr int CHUNKS = BN / 8;
    constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE = A_BYTES + B_BYTES;
    constexpr int PITCH = (CHUNKS + 1) * 16;  // of staged rows: odd in 16 bytes, against bank conflicts
    constexpr int TABLE = 16 * PITCH - 16;    // where a warp stages the table's row: after 16 of out
    constexpr int BIAS = TABLE + BN * 2;
    constexpr int STAGED = BIAS + BN * 2;  // of a warp
    static_assert(B_BYTES / BLOCKS % 1024 == 0, "boxes start at multiples of the swizzle's 1024 bytes");
    static_assert(CHUNKS % 4 == 0 && CHUNKS <= 32, "how lanes share a row");

    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char* const staged = shared + STAGES * STAGE;
    uint64_t* const full = reinterpret_cast<uint64_t*>(staged + CONSUMERS * 4 * STAGED);
    uint64_t* const empty = full + STAGES;
    const Conv2dArgs& a = p.conv;
    const int warpgroup = threadIdx.x / WARPGROUP;
    const Steps steps(p);

    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            barrier_init(&full[s], 1);
            barrier_init(&empty[s], BLOCKS);
        }
        barrier_init_fence();
    }
    cluster_sync();

    if (warpgroup == CONSUMERS) {
        give_registers<40>();
        if (threadIdx.x != CONSUMERS * WARPGROUP) return;
        prefetch_map(&p.x);
        prefetch_map(&p.weight);
        const int rank = cluster_rank();
        auto copy_weight = [&](int slot, const ConvTile& tile, const KTile& k) {
            unsigned char* const to = shared + slot * STAGE + A_BYTES;
            barrier_expect(&full[slot], STAGE);
            copy_box_3d_to_cluster(to + B_BYTES / BLOCKS * rank, &p.weight, &full[slot], k.channel, tile.weight_tap(k),
                                   tile.n0 + BN / BLOCKS * rank, (1 << BLOCKS) - 1);
        };
        // Weights are there already; x is what the kernel before writes.
        const int early = min(STAGES, steps.count(0));
        if (steps.turns > 0) {
            const ConvTile tile = conv_tile<BN, BLOCKS>(p, blockIdx.x);
            KTile k(a, 0);
            for (int n = 0; n < early; n++, k.next(a)) copy_weight(n, tile, k);
        }
        after_previous_kernel();
        int n = 0;
        for (int step = 0; step < steps.turns * a.splits; step++) {
            const int split = steps.split(step);
            const ConvTile tile = conv_tile<BN, BLOCKS>(p, blockIdx.x + steps.turn(step) * gridDim.x);
            KTile k(a, split * a.k_tiles_per_split);
            const int end = n + steps.count(split);
            for (; n < end; n++, k.next(a)) {
                const int slot = n % STAGES;
                if (n >= STAGES) barrier_wait(&empty[slot], (n / STAGES - 1) & 1);
                if (n >= early) copy_weight(slot, tile, k);
                tile.copy_x(p, k, shared + slot * STAGE, &full[slot]);
            }
        }
        // Other blocks say here that slots are empty: this one stays until they have.
        for (int last = max(n - STAGES, 0); last < n; last++) barrier_wait(&empty[last % STAGES], last / STAGES & 1);
        return;
    }

    take_registers<232>();
    after_previous_kernel();
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, warp = thread / 32;
    unsigned char* const mine = staged + threadIdx.x / 32 * STAGED;
    auto slot_is_empty = [&](int slot) {
        if (thread < BLOCKS) barrier_arrive_cluster(&empty[slot], thread);
    };
    float sum[MI][BN / 2];
    // Sums of 1, 2 and 4 splits, which wait for as many more: each thread's own.
    auto kept = [&](int level, int i) {
        constexpr int EACH = MI * BN / 8;
        const int threads = gridDim.x * BLOCKS * CONSUMERS * WARPGROUP;
        const int mine = (blockIdx.x * BLOCKS + cluster_rank()) * CONSUMERS * WARPGROUP + threadIdx.x;
        return reinterpret_cast<float4*>(a.partial) + (level * EACH + i) * threads + mine;
    };
    auto sums = [&](int i) { return &sum[i / (BN / 8)][i % (BN / 8) * 4]; };
    for (int turn = warpgroup; turn < steps.turns; turn += CONSUMERS) {
        const int group = blockIdx.x + turn * gridDim.x;
        // Of what the tile is, no more lives on than these.
        int n0, rows[MI][2], table_rows[MI];  // rows of out, lane / 4 of each 8; of the table, for each 64
        {
            const ConvTile tile = conv_tile<BN, BLOCKS>(p, group);
            n0 = tile.n0;
#pragma unroll
            for (int mi = 0; mi < MI; mi++) {
                const int row = mi * 64 + warp * 16;
                rows[mi][0] = tile.out_row(p, row + lane / 4);
                rows[mi][1] = tile.out_row(p, row + lane / 4 + 8);
                // A warp's 16 rows are of one image: a tile is of 8 images at most.
                table_rows[mi] = a.table ? a.index[min(tile.image(row), a.b - 1)] : 0;
            }
        }
        // body(where it is staged, where it is in `tensor`) for this lane's chunks of out.
        auto each = [&](int mi, auto* tensor, int pitch, auto body) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                auto* const row = tensor + static_cast<int64_t>(rows[mi][h]) * pitch + n0 + lane % 4 * 8;
#pragma unroll
                for (int chunk = 0; chunk < CHUNKS; chunk += 4)
                    if (rows[mi][h] >= 0 && n0 + (lane % 4 + chunk) * 8 < a.o)
                        body(mine + (lane / 4 + h * 8) * PITCH + (lane % 4 + chunk) * 16, row + chunk * 8);
            }
        };
        // This lane's chunk of a vector of o.
        auto stage_vector = [&](int to, const void* vector, int64_t first) {
            if (vector && lane < CHUNKS && n0 + lane * 8 < a.o)
                copy_async_16(mine + to + lane * 16, static_cast<const T*>(vector) + first + n0 + lane * 8);
        };
        auto stage = [&](int mi) {
            if (a.residual)
                each(mi, static_cast<const T*>(a.residual), a.residual_pitch,
                     [&](unsigned char* to, const T* from) { copy_async_16(to, from); });
            stage_vector(TABLE, a.table, static_cast<int64_t>(table_rows[mi]) * a.table_pitch);
        };
        stage_vector(BIAS, a.bias, 0);
        stage(0);

        for (int split = 0; split < a.splits; split++) {
            const int first = steps.before(turn, split), k_tiles = steps.count(split);
            // A barrier tells phases by parity alone: whoever waits for one must know that those before it are over.
            if (warpgroup == 0 ? (split == 0 ? turn > 0 : steps.paired(turn)) : true)
                named_sync(TURN + warpgroup, CONSUMERS * WARPGROUP);
            for (int kt = 0; kt < k_tiles; kt++) {
                const int n = first + kt, slot = n % STAGES;
                barrier_wait(&full[slot], n / STAGES & 1);
                const uint64_t at = tile_descriptor(shared + slot * STAGE);
                const uint64_t bt = tile_descriptor(shared + slot * STAGE + A_BYTES);
#pragma unroll
                for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
                wgmma_begin();
#pragma unroll
                for (int step = 0; step < BK / 16; step++)
#pragma unroll
                    for (int mi = 0; mi < MI; mi++)
                        // 16 halves of k are 32 bytes, 64 rows are 8192: in units of 16.
                        Wgmma<BN>::run(T(), sum[mi], at + step * 2 + mi * 512, bt + step * 2, kt > 0 || step > 0);
                wgmma_commit();
#pragma unroll
                for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
                // The products of the k tile before this one are done: its slot is free.
                wgmma_wait<1>();
                if (kt > 0) slot_is_empty((n - 1) % STAGES);
            }
            const bool is_last = split + 1 == a.splits;
            if (warpgroup == 0 ? steps.paired(turn) : !is_last || turn + 1 < steps.turns)
                named_arrive(TURN + 1 - warpgroup, CONSUMERS * WARPGROUP);
            wgmma_wait<0>();
#pragma unroll
            for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
            slot_is_empty((first + k_tiles - 1) % STAGES);

            // As in counting: what is kept at a level is taken where the bit of `split` is set, and kept one higher.
#pragma unroll 1
            for (int level = 0; level < 3; level++) {
                if (split >> level & 1) {
#pragma unroll
                    for (int i = 0; i < MI * BN / 8; i++) {
                        // There are no registers for all of them at once.
                        if (i % 8 == 0) __syncwarp();
                        const float4 v = __ldcg(kept(level, i));
                        float* const s = sums(i);
                        s[0] += v.x, s[1] += v.y, s[2] += v.z, s[3] += v.w;
                    }
                } else if (!is_last) {
#pragma unroll
                    for (int i = 0; i < MI * BN / 8; i++) {
                        const float* const s = sums(i);
                        __stcg(kept(level, i), make_float4(s[0], s[1], s[2], s[3]));
                    }
                    break;
                }
            }
        }

#pragma unroll
        for (int mi = 0; mi < MI; mi++) {
            if (mi > 0) stage(mi);
            copy_async_wait();
            __syncwarp();
            // Two chunks of 16 rows at a time, four matrices: rows 0-7 and 8-15 of the first, then of the second.
            unsigned char* const at = mine + lane % 16 * PITCH + lane / 16 * 16;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
                uint32_t halves[4] = {};  // of the residual, then of out
                if (a.residual) load_matrices(halves, at + chunk * 16);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int j = chunk + i / 2, e = j * 4 + i % 2 * 2;
                    auto add = [](float2& v, float2 f) { v.x += f.x, v.y += f.y; };
                    auto staged_at = [&](int vector) {
                        const unsigned char* const columns = mine + vector + j * 16 + lane % 4 * 4;
                        return to_floats(T(), *reinterpret_cast<const uint32_t*>(columns));
                    };
                    // Added up as in conv_sm90.cu: the bias to the table's row first.
                    float2 v = make_float2(sum[mi][e], sum[mi][e + 1]), offset = make_float2(0.f, 0.f);
                    if (a.bias) offset = staged_at(BIAS);
                    if (a.table) add(offset, staged_at(TABLE));
                    add(v, offset);
                    add(v, to_floats(T(), halves[i]));
                    halves[i] = pack2(T(), v.x, v.y);
                }
                store_matrices(at + chunk * 16, halves);
            }
            __syncwarp();
            each(mi, static_cast<T*>(a.out), a.out_pitch, [&](const unsigned char* from, T* to) {
                *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
            });
            __syncwarp();
        }
    }
}

// Contents: conv2d_turns_sm90_{f16,bf16}_{tile}. Grid (clusters, 1, blocks of a cluster); at most one block for each
// multiprocessor; 384 threads; shared memory as of src/gpu/conv_sm90.rs.
#define CONV2D(BN, STAGES, BLOCKS)                                                                                     \
    extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)                                       \
        conv2d_turns_sm90_f16_128x##BN(const __grid_constant__ Conv2dSm90Args p) {                                     \
        conv2d<half, BN, STAGES, BLOCKS>(p);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)                                       \
        conv2d_turns_sm90_bf16_128x##BN(const __grid_constant__ Conv2dSm90Args p) {                                    \
        conv2d<__nv_bfloat16, BN, STAGES, BLOCKS>(p);                                                                  \
    }
//      n   stages  blocks
CONV2D(160, 5, 2)
CONV2D(128, 5, 2)

// Attention over few keys on Hopper: a prompt's 77 tokens, or the 64 pixels of the smallest map.
//
//   out[b,t,h,:] = sum over s of softmax over s (scale q[b,t,h,:].k[b,s,h,:])  v[b,s,h,:],   at most 80 s
//
// All keys are one tile, so that a row's softmax is done at once; what is left is to read Q and to write out. Reading the
// keys is as much as reading some tiles of queries: all warpgroups of a multiprocessor share them.
//
//   block (some tiles of 64 queries of one head), 1 to 4 warpgroups:
//     K, V -> shared
//     each warpgroup, for each of its tiles, two of them on their way:
//       S = Q K^T;  start the copy of the tile after the next;  P = softmax(S), in registers;  out = P V
//
// Boxes of 64 channels as in attention_sm90.cu.
//
// SD 1.5 at 512x512, batch 2 (b*heads, t, d): 16x4096x40, 16x1024x80, 16x256x160, 16x64x160.
// Test: cargo test --release --test kernels attention        Bench: cargo bench --bench kernels attention
#include "hopper.cuh"
#include "softmax.cuh"

constexpr int WARPGROUP = 128;
constexpr int QUERIES = 64;
constexpr int KEYS = 80;
constexpr int BOX = 64;       // channels of a box: 128 bytes
constexpr int ROW = BOX * 2;  // bytes

template <typename T, int D> __device__ __forceinline__ void attention_short(const AttentionSm90Args& p) {
    constexpr int BOXES = (D + BOX - 1) / BOX;
    constexpr int K_STEPS = (D + 15) / 16;
    constexpr int Q_BYTES = BOXES * QUERIES * ROW, K_BYTES = BOXES * KEYS * ROW;
    constexpr int STEPS = KEYS / 16;

    const AttentionArgs& a = p.attention;
    extern __shared__ __align__(1024) unsigned char shared[];
    const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP, 0), warpgroups = blockDim.x / WARPGROUP;
    unsigned char* const v_tile = shared + K_BYTES;
    unsigned char* const q_tiles = v_tile + K_BYTES + warpgroup * 2 * Q_BYTES;
    uint64_t* const kv_full = reinterpret_cast<uint64_t*>(v_tile + K_BYTES + warpgroups * 2 * Q_BYTES);
    uint64_t* const q_full = kv_full + 1 + warpgroup * 2;
    const int thread = threadIdx.x % WARPGROUP, lane = threadIdx.x % 32, warp = thread / 32;
    const int head = blockIdx.y % a.heads, image = blockIdx.y / a.heads;
    const int tiles = (a.t + QUERIES - 1) / QUERIES;
    const int first = blockIdx.x * warpgroups + warpgroup, stride = gridDim.x * warpgroups;
    // In the table of all images, or of its own.
    const Keys keys = keys_of(a, image);
    const int first_key = a.first_key ? static_cast<int>(keys.first) : 0, key_image = a.first_key ? 0 : image;

    if (thread == 0) {
        barrier_init(&q_full[0], 1);
        barrier_init(&q_full[1], 1);
        if (warpgroup == 0) barrier_init(kv_full, 1);
        barrier_init_fence();
    }
    __syncthreads();
    after_previous_kernel();
    if (keys.count > KEYS) return;  // the portable kernel's

    // This warpgroup's tile number i, if it has so many.
    auto copy_q = [&](int i) {
        const int tile = first + i * stride;
        if (tile >= tiles) return;
        barrier_expect(&q_full[i % 2], Q_BYTES);
#pragma unroll
        for (int box = 0; box < BOXES; box++)
            copy_box_4d(q_tiles + i % 2 * Q_BYTES + box * QUERIES * ROW, &p.q, &q_full[i % 2], box * BOX, head, tile * QUERIES,
                        image);
    };
    if (threadIdx.x == 0) {
        barrier_expect(kv_full, 2 * K_BYTES);
#pragma unroll
        for (int box = 0; box < BOXES; box++)
            copy_box_4d(shared + box * KEYS * ROW, &p.k, kv_full, box * BOX, head, first_key, key_image);
#pragma unroll
        for (int box = 0; box < BOXES; box++)
            copy_box_4d(v_tile + box * KEYS * ROW, &p.v, kv_full, box * BOX, head, first_key, key_image);
    }
    if (thread == 0) {
        copy_q(0);
        copy_q(1);
    }
    if (first >= tiles) return;

    const float scale = a.scale * LOG2_E;
    const uint64_t k = tile_descriptor(shared), v = tile_descriptor_by_k(v_tile, KEYS * ROW);
    float s[KEYS / 2], o[D / 2];
    uint32_t weights[STEPS][4];
    // Keys that do not exist weigh nothing: zeros were copied in their place, or what lies behind an image's range of the
    // table, which is finite. Those of the first columns exist.
    auto mask = [&](int existing) {
        const int valid = keys.count - lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++)
            if (j / 4 * 8 >= existing && j / 4 * 8 + j % 2 >= valid) s[j] = -INFINITY;
    };
    barrier_wait(kv_full, 0);
    for (int i = 0, tile = first; tile < tiles; i++, tile += stride) {
        barrier_wait(&q_full[i % 2], i / 2 & 1);
        const uint64_t q = tile_descriptor(q_tiles + i % 2 * Q_BYTES);
        keep(s);
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < K_STEPS; step++) {
            const int box = step / 4, within = step % 4;
            Wgmma<KEYS>::run(T(), s, q + box * (QUERIES * ROW / 16) + within * 2, k + box * (KEYS * ROW / 16) + within * 2,
                             step > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        keep(s);
        // All warps have read Q: its place is free.
        named_sync(1 + warpgroup, WARPGROUP);
        if (thread == 0) copy_q(i + 2);

        if (keys.count > KEYS - 8) {
            mask(KEYS - 8);
        } else {
            mask(0);
        }
        float shift[2], total[2] = {};
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float larger = fmaxf(s[j * 4 + h * 2], s[j * 4 + h * 2 + 1]);
                shift[h] = j == 0 ? larger : fmaxf(shift[h], larger);
            }
#pragma unroll
        for (int h = 0; h < 2; h++) shift[h] = quad_max(shift[h]) * scale;
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) {
            s[j] = exp2_approx(s[j] * scale - shift[j / 2 % 2]);
            total[j / 2 % 2] += s[j];
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int r = 0; r < 4; r++) weights[step][r] = pack2(T(), s[step * 8 + r * 2], s[step * 8 + r * 2 + 1]);

        keep(o);
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < STEPS; step++)
            WgmmaRegisters<D>::run(T(), o, weights[step], v + step * (16 * ROW / 16), step > 0);
        wgmma_commit();
        float share[2];
#pragma unroll
        for (int h = 0; h < 2; h++) share[h] = __fdividef(1.f, quad_sum(total[h]));
        wgmma_wait<0>();
        keep(o);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int t = tile * QUERIES + warp * 16 + lane / 4 + h * 8;
            if (t >= a.t) continue;
            T* out = static_cast<T*>(a.out) + (static_cast<int64_t>(image) * a.t + t) * a.out_pitch + head * D + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < D / 8; j++)
                *reinterpret_cast<uint32_t*>(out + j * 8) =
                    pack2(T(), o[j * 4 + h * 2] * share[h], o[j * 4 + h * 2 + 1] * share[h]);
        }
    }
}

// Contents: attention_short_sm90_{f16,bf16}_d{40,64,80,160}. Grid (blocks of a head, b*heads), 128 threads for each of up to
// WARPGROUPS warpgroups, shared memory 128 * boxes * (2 * 80 + warpgroups * 2 * 64) + 8 * (1 + 2 * warpgroups) bytes,
// boxes = ceil(d / 64).
#define ATTENTION(D, WARPGROUPS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(WARPGROUPS * WARPGROUP)                                               \
        attention_short_sm90_f16_d##D(const __grid_constant__ AttentionSm90Args p) {                                   \
        attention_short<half, D>(p);                                                                                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPGROUPS * WARPGROUP)                                               \
        attention_short_sm90_bf16_d##D(const __grid_constant__ AttentionSm90Args p) {                                  \
        attention_short<__nv_bfloat16, D>(p);                                                                          \
    }
ATTENTION(40, 4)
ATTENTION(64, 4)
ATTENTION(80, 4)
ATTENTION(160, 2)

// Arguments of every kernel: one struct by value per kernel, output first, then inputs, sizes, scalars.
// Mirrored field by field in src/gpu/kernels.rs; sizes are asserted on both sides.
//
// Letters: b images, h w space, c channels, t tokens, s key tokens, d head dim; i/o input/output channels.
// A pitch counts elements from one row to the next. T is the activations' dtype.
#pragma once

struct Conv2dArgs {
    void* out;             // T [b,ho,wo,o]
    const void* x;         // T [b,h,w,i]
    const void* weight;    // T [o,k,k,i]; [o,5,5,i] with upsample: see cuda/conv.cuh
    const void* bias;      // T [o] or null
    const void* table;     // T [n,o] or null: row index[b] is added to every pixel of image b
    const int* index;      // [b]
    const void* residual;  // T [b,ho,wo,o] or null; may be out
    float* partial;        // f32 [splits,m,o] with splits > 1, m = b*ho*wo; in turns, what threads keep
    int b, h, w, i;
    int ho, wo, o;
    int k, stride, pad, upsample;  // k: of the kernel that slides over x
    int x_pitch, out_pitch, residual_pitch, table_pitch;
    int splits, k_tiles_per_split;  // split-K: split z owns k tiles z*k_tiles_per_split ..
};
static_assert(sizeof(Conv2dArgs) == 136, "mirrored in src/gpu/kernels.rs");

// What the copy engine of sm_90 knows of a tensor: the driver's CUtensorMap.
struct alignas(64) TensorMap {
    unsigned char opaque[128];
};

struct Conv2dSm90Args {
    TensorMap x;       // T [b,h,w,i], boxes [tile_b,tile_h,tile_w,64]
    TensorMap weight;  // T [o,taps,i], boxes [tile n,1,64]; in turns, a block's share of tile n
    Conv2dArgs conv;
    int tile_w, tile_h;  // a tile of m is a box of a part's pixels
    int tile_b;
    int groups;  // of tiles, in turns
    int unused[10];
};
static_assert(sizeof(Conv2dSm90Args) == 448, "mirrored in src/gpu/kernels.rs");

// The naive oracle takes it alone. What neither it nor linear_sm90 computes is cuBLASLt's.
struct LinearArgs {
    void* out;             // T [m,n]
    const void* x;         // T [m,k]
    const void* weight;    // T [n,k]
    const void* bias;      // T [n] or null
    const void* residual;  // T [m,n] or null; may be out
    int m, n, k;
    int out_pitch, x_pitch, residual_pitch;
};
static_assert(sizeof(LinearArgs) == 64, "mirrored in src/gpu/kernels.rs");

struct LinearSm90Args {
    TensorMap x;        // T [m,k], boxes [tile m,64]
    TensorMap weight;   // T [n,k], boxes [columns of a tile of out,64]
    LinearArgs linear;  // n: rows of weight; with geglu out has n/2 columns
    int tiles, tiles_n;
    int unused[14];
};
static_assert(sizeof(LinearSm90Args) == 384, "mirrored in src/gpu/kernels.rs");

struct ActivateArgs {
    void* out;      // T [m,n]; may be x
    const void* x;  // T [m,n]
    int m, n;
    int out_pitch, x_pitch;
    int kind;  // as `activated` in elementwise.cu counts them
    int unused;
};
static_assert(sizeof(ActivateArgs) == 40, "mirrored in src/gpu/kernels.rs");

struct AttentionArgs {
    void* out;      // T [b,t,heads*d]
    const void* q;  // T [b,t,heads*d]
    const void* k;  // T [b,s,heads*d]; with first_key [tokens,heads*d], a table for all images
    const void* v;  // as k
    const int* first_key;   // [b] or null: image b has the tokens first_key[b] .. + key_count[b] of the table
    const int* key_count;   // [b], with first_key
    int b, heads, t, s, d;  // s: with first_key, the most keys of an image
    int out_pitch, q_pitch, k_pitch, v_pitch;
    int causal;
    float scale;      // 1/sqrt(d)
    int fewest_keys;  // with first_key: images with fewer are another kernel's
};
static_assert(sizeof(AttentionArgs) == 96, "mirrored in src/gpu/kernels.rs");
static_assert(offsetof(AttentionArgs, first_key) == 32 && offsetof(AttentionArgs, b) == 48 &&
                  offsetof(AttentionArgs, scale) == 88,
              "mirrored in src/gpu/kernels.rs");

// The keys of an image: its tokens of k and v.
struct Keys {
    size_t first;
    int count;
};

// Constant while kernels run: the host writes them in front. So this may come before after_previous_kernel.
__device__ __forceinline__ Keys keys_of(const AttentionArgs& a, int image) {
    if (!a.first_key) return {size_t(image) * a.s, a.s};
    return {size_t(a.first_key[image]), a.key_count[image]};
}

struct AttentionSm90Args {
    TensorMap q;  // T [b,t,heads,d], boxes [1,64,1,64]
    TensorMap k;  // T [b,s,heads,d], or the table [1,tokens,heads,d]; boxes [1,keys of a tile,1,64]
    TensorMap v;  // the same
    AttentionArgs attention;
    int unused[8];
};
static_assert(sizeof(AttentionSm90Args) == 512, "mirrored in src/gpu/kernels.rs");

struct GroupNormArgs {
    void* out;           // T [b,hw,c]; may be x
    const void* x;       // T [b,hw,c]
    const void* weight;  // T [c]
    const void* bias;    // T [c]
    float* partial;      // f32 [b,groups,splits,2]: sums of (x-shift) and (x-shift)^2, then [b,groups]: the shifts
    int b, hw, c, groups;
    int out_pitch, x_pitch;
    int splits, rows_per_split;  // of group_norm_apply: rows of a block
    int silu;
    float eps;
};
static_assert(sizeof(GroupNormArgs) == 80, "mirrored in src/gpu/kernels.rs");

struct LayerNormArgs {
    void* out;           // T [m,c]
    const void* x;       // T [m,c]
    const void* weight;  // T [c]
    const void* bias;    // T [c]
    int m, c;
    int out_pitch, x_pitch;
    float eps;
    int unused;
};
static_assert(sizeof(LayerNormArgs) == 56, "mirrored in src/gpu/kernels.rs");

struct GegluArgs {
    void* out;      // T [m,n]
    const void* x;  // T [m,2n], values, then gates
    int m, n;
    int out_pitch, x_pitch;
};
static_assert(sizeof(GegluArgs) == 32, "mirrored in src/gpu/kernels.rs");

struct AccumulateArgs {
    void* x;             // T [m,n]: t rows for each image
    const void* y;       // T [m,n]
    const float* gains;  // [rows]
    const int* index;    // [m/t]
    int m, n, t;
    int x_pitch, y_pitch, unused;
};
static_assert(sizeof(AccumulateArgs) == 56, "mirrored in src/gpu/kernels.rs");

struct EmbedArgs {
    void* out;              // T [b*t,c]
    const int* ids;         // [b*t]
    const void* tokens;     // T [vocabulary,c]
    const void* positions;  // T [at least t,c], or null
    int m, t, c, vocabulary;
    int tokens_pitch, out_pitch;
};
static_assert(sizeof(EmbedArgs) == 56, "mirrored in src/gpu/kernels.rs");

struct EmphasizeArgs {
    void* x;              // T [b,t,c]
    const float* weight;  // [b,t]
    int t, c, pitch, restore_mean;
};
static_assert(sizeof(EmphasizeArgs) == 32, "mirrored in src/gpu/kernels.rs");

struct TimestepEmbeddingArgs {
    void* out;               // T [n,c]
    const float* timesteps;  // [n]
    int n, c, flip_sin_to_cos;
    float freq_shift;
};
static_assert(sizeof(TimestepEmbeddingArgs) == 32, "mirrored in src/gpu/kernels.rs");

struct ScaleArgs {
    void* out;       // T [n]
    const float* x;  // [n]
    int n, c;
    float factor[16], summand[16];  // of channel j, entries j mod 16
};
static_assert(sizeof(ScaleArgs) == 152, "mirrored in src/gpu/kernels.rs");

struct ModelInputArgs {
    void* out;           // T [rows,pixels,out_c]
    const float* x;      // [slots,pixels,c]
    const void* beside;  // T [slots,pixels,e] or null
    const float* table;  // [rows of all tables,ROW_WIDTH]
    const int* index;    // [rows]
    const int* slot;     // [rows]
    const int* shown;    // [rows], with beside: nonzero shows it
    int rows, pixels, c, e;
    int out_c, out_pitch;
};
static_assert(sizeof(ModelInputArgs) == 80, "mirrored in src/gpu/kernels.rs");
static_assert(offsetof(ModelInputArgs, shown) == 48 && offsetof(ModelInputArgs, out_c) == 72,
              "mirrored in src/gpu/kernels.rs");

struct SamplerStepArgs {
    float* x;                  // [slots,n], n = h*w*c
    float* saved;              // [slots,n]
    float* history;            // [slots,4,n]
    const void* output;        // T [rows,n]
    const int* rows;           // [b,3]: conditional, unconditional or -1, image without prompt or -1
    const float* noise;        // [rows of all tables,n]
    const float* table;        // [rows of all tables,ROW_WIDTH]
    const int* index;          // [b]
    const int* slot;           // [b]
    const float* guidance;     // [slots,3]: scale, rescale, scale of the image
    const float* mask;         // [slots,h*w] or null: 1 is painted, 0 is known
    const float* known;        // [slots,n], with mask
    const float* known_noise;  // [slots,n], with mask
    int b, n, c, unused;
};
static_assert(sizeof(SamplerStepArgs) == 120, "mirrored in src/gpu/kernels.rs");
static_assert(offsetof(SamplerStepArgs, guidance) == 72 && offsetof(SamplerStepArgs, b) == 104,
              "mirrored in src/gpu/kernels.rs");

struct ToRgb8Args {
    unsigned char* out;  // [m,3]
    const void* x;       // T [m,3]
    int m, x_pitch;
};
static_assert(sizeof(ToRgb8Args) == 24, "mirrored in src/gpu/kernels.rs");

// What the host and a running loop share.
struct StepArgs {
    int* index;                    // [rows]: every entry grows by one at the end of a step
    int* counters;                 // [2]: steps left, steps done
    volatile int* done;            // mapped host memory: steps done, for the progress bar
    volatile const int* cancel;    // mapped host memory: nonzero stops the loop
    unsigned long long condition;  // handle of the conditional WHILE node; step_while only
    int rows, unused;
};
static_assert(sizeof(StepArgs) == 48, "mirrored in src/gpu/kernels.rs");

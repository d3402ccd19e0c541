// Which pixels of a convolution's output a part of the grid computes, and which taps of the weight they see.
#pragma once
#include "args.cuh"

// Without upsample there is one part. With it, 2x2 kernels out of the weight's 5x5 sums of taps slide over x, other sums
// for other kinds of rows of the output, and so for columns. There is a part for each pair of kinds, columns first:
//   0  even, 2y:   rows y - 1 and y of x, sums 0 and 1
//   1  odd, 2y+1:  rows y and y + 1, sums 2 and 3
//   2  the last of an odd number, below which the enlargement is cut: rows y - 1 and y, sums 0 and 4
struct Part {
    int rows, columns;      // of pixels
    int y, x;               // the first of them
    int step, dy, dx;       // pixel (i, j) of the part is (step * (y + i) + dy, step * (x + j) + dx) of the output
    int tap, tap_y, tap_x;  // tap (ky, kx) is `tap + ky * tap_y + kx * tap_x` of the weight

    // Row and column of x that a pixel's patch begins at.
    __device__ __forceinline__ int top(const Conv2dArgs& a, int i) const { return (y + i) * a.stride - a.pad + dy; }
    __device__ __forceinline__ int left(const Conv2dArgs& a, int j) const { return (x + j) * a.stride - a.pad + dx; }
    // The output's pixel.
    __device__ __forceinline__ int64_t out(const Conv2dArgs& a, int image, int i, int j) const {
        return (static_cast<int64_t>(image) * a.ho + step * (y + i) + dy) * a.wo + step * (x + j) + dx;
    }
};

constexpr int TAP_SUMS = 5;

// Taps of an output channel in the weight.
__device__ __forceinline__ int weight_taps(const Conv2dArgs& a) { return a.upsample ? TAP_SUMS * TAP_SUMS : a.k * a.k; }

__device__ __forceinline__ Part part_of(const Conv2dArgs& a, int part) {
    if (!a.upsample) return {a.ho, a.wo, 0, 0, 1, 0, 0, 0, a.k, 1};
    const int kinds = 2 + a.wo % 2, row = part / kinds, column = part % kinds;
    auto first_sum = [](int kind) { return kind == 1 ? 2 : 0; };
    auto next_sum = [](int kind) { return kind == 2 ? 4 : 1; };
    return {row == 2 ? 1 : a.ho / 2,
            column == 2 ? 1 : a.wo / 2,
            row == 2 ? a.h - 1 : 0,
            column == 2 ? a.w - 1 : 0,
            2,
            row == 1,
            column == 1,
            first_sum(row) * TAP_SUMS + first_sum(column),
            next_sum(row) * TAP_SUMS,
            next_sum(column)};
}

// Rows of an image in working memory, and how they are read from and written to tensors of either memory format.
//
// A row is as many zeros as the window over channels is wide, then pixel after pixel C channels and one zero less than that, so that a
// window reads zeros outside [0, C); last a vector to spare. A vector that reaches beyond C is written with zeros there: they fall on
// the zeros behind the pixel and on the next pixel, which is written next.

template <typename A>
struct Rows {
    A* memory;
    int64_t count, pitch, border, pixel_pitch;  // rows; elements

    // Room for `count` rows; row y takes the place of row y - count.
    Rows(const Problem& p, int64_t count, int64_t width) : count(count), border(p.channel_window()) {
        pixel_pitch = p.channels + border - 1;
        pitch = (2 * border + width * pixel_pitch + Simd<A>::lanes + 15) / 16 * 16;
        memory = (A*)calloc((size_t)(count * pitch) + 16, sizeof(A));
        if (!memory) abort();  // inside a parallel region there is nobody to tell
    }
    ~Rows() { free(memory); }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;

    INLINE A* row(int64_t y) const { return memory + (count == 1 ? 0 : y % count) * pitch + border; }
};

// The body of for_channels: inlined, or every vector would cost a call.
#define EACH_VECTOR(c, lanes) [&](int64_t c, int64_t lanes) __attribute__((always_inline))

// Calls f(c, lanes) for every vector of a pixel's channels; lanes is less than a vector's for the last one at most.
template <typename A, typename F>
INLINE void for_channels(int64_t channels, const F& f) {
    int64_t c = 0;
    for (; c + Simd<A>::lanes <= channels; c += Simd<A>::lanes) f(c, (int64_t)Simd<A>::lanes);
    if (c < channels) f(c, channels - c);
}

template <typename A>
INLINE void store_padded(A* to, Vector<A> v, int64_t lanes) {
    for (int64_t i = lanes; i < Simd<A>::lanes; i++) v[i] = 0;
    store(to, v);
}

#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else  // GCC has that from 12 on
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif

// (rows, columns), `step` elements from row to row -> (columns, rows), `to_step` elements from row to row. Elements of four bytes go
// in squares of four by four.
template <typename T>
INLINE void transpose(const T* from, int64_t step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
    typedef float Four __attribute__((vector_size(16)));
    int64_t r = 0;
    for (; sizeof(T) == 4 && r + 4 <= rows; r += 4) {
        const T* row = from + r * step;
        int64_t c = 0;
        for (; c + 4 <= columns; c += 4) {
            const Four a0 = load<Four>(row + c), a1 = load<Four>(row + step + c);
            const Four a2 = load<Four>(row + 2 * step + c), a3 = load<Four>(row + 3 * step + c);
            const Four b0 = PICK(a0, a1, 0, 4, 1, 5), b1 = PICK(a0, a1, 2, 6, 3, 7);
            const Four b2 = PICK(a2, a3, 0, 4, 1, 5), b3 = PICK(a2, a3, 2, 6, 3, 7);
            store(to + c * to_step + r, PICK(b0, b2, 0, 1, 4, 5));
            store(to + (c + 1) * to_step + r, PICK(b0, b2, 2, 3, 6, 7));
            store(to + (c + 2) * to_step + r, PICK(b1, b3, 0, 1, 4, 5));
            store(to + (c + 3) * to_step + r, PICK(b1, b3, 2, 3, 6, 7));
        }
        for (; c < columns; c++)
            for (int64_t i = 0; i < 4; i++) to[c * to_step + r + i] = row[i * step + c];
    }
    for (; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[c * to_step + r] = from[r * step + c];
}

// Rows of (W, C) elements of a (N, C, H, W) tensor: in channels_last they lie so in memory, in NCHW they pass through `staging`.
template <typename T>
struct TensorRows {
    const bool channels_last;
    const int64_t channels, height, width;
    T* staging;

    TensorRows(const Problem& p, int64_t height, int64_t width)
        : channels_last(p.channels_last), channels(p.channels), height(height), width(width) {
        staging = (T*)malloc((size_t)(channels * width) * sizeof(T));
        if (!staging) abort();
    }
    ~TensorRows() { free(staging); }
    TensorRows(const TensorRows&) = delete;
    TensorRows& operator=(const TensorRows&) = delete;

    const T* read(const T* tensor, int64_t image, int64_t y) const {
        const T* start = tensor + image * channels * height * width;
        if (channels_last) return start + y * width * channels;
        transpose(start + y * width, height * width, channels, width, staging, channels);
        return staging;
    }
    T* place(T* tensor, int64_t image, int64_t y) const {  // where to write the row; then call `written`
        return channels_last ? tensor + (image * height + y) * width * channels : staging;
    }
    void written(T* tensor, int64_t image, int64_t y) const {
        if (!channels_last)
            transpose(staging, channels, width, channels, tensor + image * channels * height * width + y * width, height * width);
    }
};

// (W, C) elements -> a row in working memory, through f(vector, x, c).
template <typename T, typename A, typename F>
INLINE void load_row(const T* from, A* to, int64_t width, int64_t channels, int64_t pixel_pitch, const F& f) {
    for (int64_t x = 0; x < width; x++)
        for_channels<A>(channels, EACH_VECTOR(c, lanes) {
            const T* start = from + x * channels + c;
            const Vector<A> v = lanes == Simd<A>::lanes ? load_elements(start) : load_first<Vector<A>>(start, lanes);
            store_padded(to + x * pixel_pitch + c, f(v, x, c), lanes);
        });
}

// A vector of results -> elements of a tensor.
template <typename T, typename A>
INLINE void store_result(T* to, Vector<A> v, int64_t lanes) {
    if (lanes == Simd<A>::lanes)
        store_elements(to, v);
    else
        store_first(to, v, lanes);
}

template <typename T, typename A>
INLINE void store_row(const A* from, T* to, int64_t width, int64_t channels, int64_t pixel_pitch, bool relu) {
    for (int64_t x = 0; x < width; x++)
        for_channels<A>(channels, EACH_VECTOR(c, lanes) {
            Vector<A> v = load<Vector<A>>(from + x * pixel_pitch + c);
            if (relu) v = v <= 0 ? Vector<A>{} : v;
            store_result<T, A>(to + x * channels + c, v, lanes);
        });
}

// Rows of an image in working memory, and how they are read from and written to tensors of either memory format.
//
// A row is `size` zeros, then pixel after pixel C channels and size - 1 zeros, so that a window of channels reads zeros outside [0, C);
// last a vector to spare. A vector that reaches beyond C is written with zeros there: they fall on the zeros behind the pixel and on the
// next pixel, which is written next.

template <typename A>
struct Rows {
    A* memory;
    int64_t count, pitch, border, pixel_pitch;  // rows; elements

    // Room for `count` rows; row y takes the place of row y - count.
    Rows(const Problem& p, int64_t count, int64_t width) : count(count), border(p.size), pixel_pitch(p.channels + p.size - 1) {
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

// (rows, columns), `step` elements from row to row -> (columns, rows), `to_step` elements from row to row.
template <typename T>
INLINE void transpose(const T* from, int64_t step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
    for (int64_t r = 0; r < rows; r++)
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

template <typename T, typename A>
INLINE void store_row(const A* from, T* to, int64_t width, int64_t channels, int64_t pixel_pitch, bool relu) {
    for (int64_t x = 0; x < width; x++)
        for_channels<A>(channels, EACH_VECTOR(c, lanes) {
            Vector<A> v = load<Vector<A>>(from + x * pixel_pitch + c);
            if (relu) v = v <= 0 ? Vector<A>{} : v;
            if (lanes == Simd<A>::lanes)
                store_elements(to + x * channels + c, v);
            else
                store_first(to + x * channels + c, v, lanes);
        });
}

// uint8 pictures -> what the network sees: y = ((pixel - mean) + shift) * scale on a crop, flipped or not.
//
// Three vectors hold a block of as many pixels as a vector has lanes, their channels interleaved as they lie in memory. A flip
// reverses the pixels of a block, NCHW takes its channels apart: both are shuffles between the three vectors.

template <int... I>
struct Lanes {};
template <int N, int... I>
struct CountTo {
    using Type = typename CountTo<N - 1, N - 1, I...>::Type;
};
template <int... I>
struct CountTo<0, I...> {
    using Type = Lanes<I...>;
};

constexpr int PIXELS = Simd<float>::lanes;  // of a block
using AllLanes = CountTo<PIXELS>::Type;     // 0, 1, ... PIXELS - 1

struct Block {
    Vector<float> v[3];
};

enum Order { REVERSED, PLANES };

// Which value of a block comes to lane i of its vector k.
constexpr int origin(Order order, int k, int i) {
    if (order == PLANES) return 3 * i + k;
    const int place = k * PIXELS + i;
    return 3 * (PIXELS - 1 - place / 3) + place % 3;
}

#if defined(__clang__)
#define SHUFFLE(a, b, lane) __builtin_shufflevector(a, b, (lane)...)
#else
#define SHUFFLE(a, b, lane) __builtin_shuffle(a, b, Mask<float>{(lane)...})
#endif

template <Order ORDER, int K, int... I>
INLINE Vector<float> shuffled(const Block& b, Lanes<I...>) {
    const Vector<float> two = SHUFFLE(b.v[0], b.v[1], origin(ORDER, K, I) % (2 * PIXELS));
    return SHUFFLE(two, b.v[2], origin(ORDER, K, I) < 2 * PIXELS ? I : origin(ORDER, K, I) - PIXELS);
}

template <Order ORDER>
INLINE Block shuffled(const Block& b) {
    return {shuffled<ORDER, 0>(b, AllLanes{}), shuffled<ORDER, 1>(b, AllLanes{}), shuffled<ORDER, 2>(b, AllLanes{})};
}

// Past the caches: a batch is larger than they are, and a line that is written whole need not be read first.
template <typename T, bool STREAM>
INLINE void write(T* to, Vector<float> v) {
#if VECTOR_BYTES > 16
    if constexpr (STREAM) {
        T narrowed[PIXELS];
        store_elements(narrowed, v);
        if constexpr (sizeof narrowed == 64)
            _mm512_stream_si512((__m512i*)to, load<__m512i>(narrowed));
        else if constexpr (sizeof narrowed == 32)
            _mm256_stream_si256((__m256i*)to, load<__m256i>(narrowed));
        else
            _mm_stream_si128((__m128i*)to, load<__m128i>(narrowed));
        return;
    }
#endif
    store_elements(to, v);
}

// How the crops of a call or of an image are made; each combination is code of its own.
struct Way {
    bool flip, mean_flips, planes, stream;
};

// A row of `crop` pixels, a block at a time, in the order of the picture. from, mean, to: where its leftmost pixels lie, those of
// the mean under the picture's or, where the mean does not flip, under the result's; plane: elements between channels in NCHW.
template <typename T, Way WAY>
INLINE void augment_row(const uint8_t* from, const float* mean, const Block& shift, float scale, int64_t crop, T* to,
                        int64_t plane) {
    int64_t x = 0;
    while (true) {
        const int64_t out = WAY.flip ? crop - PIXELS - x : x, under = WAY.mean_flips ? x : out;
        Block b;
        for (int k = 0; k < 3; k++)
            b.v[k] = __builtin_convertvector(from_bytes(from + 3 * x + k * PIXELS), Vector<float>);
        if constexpr (WAY.flip && !WAY.mean_flips) b = shuffled<REVERSED>(b);
        for (int k = 0; k < 3; k++) b.v[k] = b.v[k] - load<Vector<float>>(mean + 3 * under + k * PIXELS);
        if constexpr (WAY.flip && WAY.mean_flips) b = shuffled<REVERSED>(b);
        for (int k = 0; k < 3; k++) b.v[k] = (b.v[k] + shift.v[k]) * scale;
        if constexpr (WAY.planes) b = shuffled<PLANES>(b);
        for (int k = 0; k < 3; k++)
            write<T, WAY.stream>(WAY.planes ? to + k * plane + out : to + 3 * out + k * PIXELS, b.v[k]);
        if (x == crop - PIXELS) return;
        x = x + 2 * PIXELS <= crop ? x + PIXELS : crop - PIXELS;  // the last block may compute again what the one before did
    }
}

// The same for rows that are shorter than a block.
template <typename T, Way WAY>
void augment_short_row(const uint8_t* from, const float* mean, const float* shift, float scale, int64_t crop, T* to,
                       int64_t plane) {
    for (int64_t x = 0; x < crop; x++)
        for (int64_t c = 0; c < 3; c++) {
            const int64_t out = WAY.flip ? crop - 1 - x : x, under = WAY.mean_flips ? x : out;
            const float pixel = (float)from[3 * x + c] - mean[3 * under + c];
            narrow((pixel + shift[c]) * scale, WAY.planes ? to + c * plane + out : to + 3 * out + c);
        }
}

template <typename T, Way WAY>
void augment_image(const Crops& crops, int64_t n, T* to) {
    const int64_t crop = crops.crop, side = crops.side, plane = crop * crop, offset = (side - crop) / 2;
    const int64_t first = crops.top[n] * side + crops.left[n];
    const uint8_t* from = crops.pictures[n] + 3 * first;
    const float *mean = crops.mean + 3 * (crops.mean_follows_crop ? first : offset * side + offset), *shift = crops.shift + 3 * n;
    Block shifts;
    for (int place = 0; place < 3 * PIXELS; place++) shifts.v[place / PIXELS][place % PIXELS] = shift[place % 3];
    for (int64_t row = 0; row < crop; row++) {
        if (crop >= PIXELS)
            augment_row<T, WAY>(from, mean, shifts, crops.scale, crop, to, plane);
        else
            augment_short_row<T, WAY>(from, mean, shift, crops.scale, crop, to, plane);
        from += 3 * side;
        mean += 3 * side;
        to += WAY.planes ? crop : 3 * crop;
    }
}

template <typename T, bool PLANES, bool STREAM>
void augment_images(const Crops& crops, T* y, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
        T* to = y + n * 3 * crops.crop * crops.crop;
        if (!crops.flip[n])
            augment_image<T, Way{false, false, PLANES, STREAM}>(crops, n, to);
        else if (crops.mean_follows_crop)
            augment_image<T, Way{true, true, PLANES, STREAM}>(crops, n, to);
        else
            augment_image<T, Way{true, false, PLANES, STREAM}>(crops, n, to);
    }
#if VECTOR_BYTES > 16
    if constexpr (STREAM) _mm_sfence();  // before another thread is told that they are written
#endif
}

template <typename T>
void augment(const Crops& crops, void* y_, int64_t begin, int64_t end) {
    T* y = (T*)y_;
    const bool stream = VECTOR_BYTES > 16 && crops.crop % PIXELS == 0 && (uintptr_t)y % VECTOR_BYTES == 0;  // so is every vector
    if (crops.channels_last)
        stream ? augment_images<T, false, true>(crops, y, begin, end) : augment_images<T, false, false>(crops, y, begin, end);
    else
        stream ? augment_images<T, true, true>(crops, y, begin, end) : augment_images<T, true, false>(crops, y, begin, end);
}

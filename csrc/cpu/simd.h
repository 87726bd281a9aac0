// Vectors of VECTOR_BYTES in GCC's and Clang's own notation, the storage types, and the two powers of the norm.

#define INLINE __attribute__((always_inline)) inline

template <typename A>
struct Simd;

template <>
struct Simd<float> {
    static constexpr int lanes = VECTOR_BYTES / 4;
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t Mask __attribute__((vector_size(VECTOR_BYTES)));  // lanes of 0 or -1; also argmax codes
    static constexpr float largest = 3.402823466e38f;
};

template <>
struct Simd<double> {
    static constexpr int lanes = VECTOR_BYTES / 8;
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Mask __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr double largest = 1.7976931348623157e308;
};

template <typename A>
using Vector = typename Simd<A>::Vector;
template <typename A>
using Mask = typename Simd<A>::Mask;

template <typename A>
INLINE Mask<A> all_lanes(int32_t value) {
    return Mask<A>{} + value;
}

template <typename V, typename S>
INLINE V load(const S* from) {
    static_assert(sizeof(V) % sizeof(S) == 0, "a vector of S");
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <typename V, typename S>
INLINE void store(S* to, V v) {
    memcpy(to, &v, sizeof v);
}

// Storage types: what one element is in memory, and what it is computed in.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <typename T>
struct Accumulator {
    using type = float;
};
template <>
struct Accumulator<double> {
    using type = double;
};

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(bf16 x) { return float_of((uint32_t)x.bits << 16); }

INLINE float widen(f16 x) {
    const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    // Moved into a float's place the exponent is 112 too small; a product with 2^112 mends that, for denormal numbers too.
    const float value = magnitude >= 0x7c00 ? float_of(0x7f800000 | (magnitude << 13)) : float_of(magnitude << 13) * 0x1p112f;
    return float_of(bits_of(value) | sign);
}

INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(double x, double* to) { *to = x; }

INLINE void narrow(float x, bf16* to) {  // to the nearest, ties to even
    const uint32_t bits = bits_of(x);
    to->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE void narrow(float x, f16* to) {  // to the nearest, ties to even
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    if (magnitude > 0x7f800000) {
        to->bits = sign | 0x7e00;
    } else if (magnitude >= 0x477ff000) {  // 65520 and more round to infinity
        to->bits = sign | 0x7c00;
    } else if (magnitude < 0x38800000) {  // below 2^-14: a sum with 1/2 leaves the multiple of 2^-24 in the last bits
        to->bits = sign | (uint16_t)(bits_of(float_of(magnitude) + 0.5f) - 0x3f000000);
    } else {
        to->bits = sign | (uint16_t)((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13);
    }
}

// A vector of consecutive elements, and the first `count` of one.
INLINE Vector<float> load_elements(const float* from) { return load<Vector<float>>(from); }
INLINE Vector<double> load_elements(const double* from) { return load<Vector<double>>(from); }
INLINE void store_elements(float* to, Vector<float> v) { store(to, v); }
INLINE void store_elements(double* to, Vector<double> v) { store(to, v); }

// Lanes of 32 bits from and to bytes and halves. GCC 12 takes __builtin_convertvector apart into single lanes.
#if VECTOR_BYTES == 64
INLINE Mask<float> from_bytes(const uint8_t* from) { return (Mask<float>)_mm512_cvtepu8_epi32(load<__m128i>(from)); }
INLINE Mask<float> from_halves(const bf16* from) { return (Mask<float>)_mm512_cvtepu16_epi32(load<__m256i>(from)); }
INLINE void to_bytes(uint8_t* to, Mask<float> v) { store(to, _mm512_cvtepi32_epi8((__m512i)v)); }
INLINE void to_halves(bf16* to, Mask<float> v) { store(to, _mm512_cvtepi32_epi16((__m512i)v)); }
#elif VECTOR_BYTES == 32
INLINE Mask<float> from_bytes(const uint8_t* from) { return (Mask<float>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)); }
INLINE Mask<float> from_halves(const bf16* from) { return (Mask<float>)_mm256_cvtepu16_epi32(load<__m128i>(from)); }
INLINE void to_bytes(uint8_t* to, Mask<float> v) {
    const __m256i low = _mm256_shuffle_epi8((__m256i)v, _mm256_set1_epi32(0x0c080400));  // byte 0 of each lane
    _mm_storel_epi64((__m128i*)to, _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}
INLINE void to_halves(bf16* to, Mask<float> v) {
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)v, (__m256i)v), 0x08);
    store(to, _mm256_castsi256_si128(pairs));
}
#else
INLINE Mask<float> from_bytes(const uint8_t* from) { return Mask<float>{from[0], from[1], from[2], from[3]}; }
INLINE Mask<float> from_halves(const bf16* from) { return Mask<float>{from[0].bits, from[1].bits, from[2].bits, from[3].bits}; }
INLINE void to_bytes(uint8_t* to, Mask<float> v) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)v[i];
}
INLINE void to_halves(bf16* to, Mask<float> v) {
    for (int i = 0; i < 4; i++) to[i].bits = (uint16_t)v[i];
}
#endif

// The same for the lanes of 64 bits that go with double.
INLINE Mask<double> wide_from_bytes(const uint8_t* from) {
    Mask<double> v;
    for (int i = 0; i < Simd<double>::lanes; i++) v[i] = from[i];
    return v;
}
INLINE void to_bytes(uint8_t* to, Mask<double> v) {
    for (int i = 0; i < Simd<double>::lanes; i++) to[i] = (uint8_t)v[i];
}

template <typename A>
INLINE Mask<A> load_codes(const uint8_t* from) {
    if constexpr (sizeof(A) == 8)
        return wide_from_bytes(from);
    else
        return from_bytes(from);
}

INLINE Vector<float> load_elements(const bf16* from) { return (Vector<float>)(from_halves(from) << 16); }

INLINE void store_elements(bf16* to, Vector<float> v) {  // to the nearest, ties to even
    typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
    const Words bits = (Words)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to_halves(to, v == v ? (Mask<float>)rounded : all_lanes<float>(0x7fc0));
}

INLINE Vector<float> load_elements(const f16* from) {
#if VECTOR_BYTES == 64
    return _mm512_cvtph_ps(load<__m256i>(from));
#elif VECTOR_BYTES == 32
    return _mm256_cvtph_ps(load<__m128i>(from));
#else
    Vector<float> v;
    for (int i = 0; i < Simd<float>::lanes; i++) v[i] = widen(from[i]);
    return v;
#endif
}

INLINE void store_elements(f16* to, Vector<float> v) {
#if VECTOR_BYTES == 64
    store(to, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif VECTOR_BYTES == 32
    store(to, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < Simd<float>::lanes; i++) narrow(v[i], to + i);
#endif
}

template <typename V, typename T>
INLINE V load_first(const T* from, int64_t count) {
    V v = {};
    for (int64_t i = 0; i < count; i++) v[i] = widen(from[i]);
    return v;
}

template <typename V, typename T>
INLINE void store_first(T* to, V v, int64_t count) {
    for (int64_t i = 0; i < count; i++) narrow(v[i], to + i);
}

// 1 / sqrt(d) and 1 / d, roughly: the processor's estimates are off by 2^-12 (AVX2) or 2^-14 (AVX-512), the others by their rounding.
#if VECTOR_BYTES == 64
INLINE Vector<float> rough_inverse_root(Vector<float> d) { return _mm512_rsqrt14_ps(d); }
INLINE Vector<float> rough_inverse(Vector<float> d) { return _mm512_rcp14_ps(d); }
#elif VECTOR_BYTES == 32
INLINE Vector<float> rough_inverse_root(Vector<float> d) { return _mm256_rsqrt_ps(d); }
INLINE Vector<float> rough_inverse(Vector<float> d) { return _mm256_rcp_ps(d); }
#else
INLINE Vector<float> rough_inverse_root(Vector<float> d) {
    for (int i = 0; i < Simd<float>::lanes; i++) d[i] = 1 / __builtin_sqrtf(d[i]);
    return d;
}
INLINE Vector<float> rough_inverse(Vector<float> d) { return 1 / d; }
#endif

INLINE Vector<double> rough_inverse_root(Vector<double> d) {
    for (int i = 0; i < Simd<double>::lanes; i++) d[i] = 1 / __builtin_sqrt(d[i]);
    return d;
}
INLINE Vector<double> rough_inverse(Vector<double> d) { return 1 / d; }

// d^-beta and, for the gradient, d^(-beta-1), with d = k + alpha * sum. An infinite d has the powers 0.
template <typename A>
struct Powers {
    Vector<A> normaliser, slope;
};

template <typename A, bool THREE_QUARTERS>
INLINE Powers<A> powers(Vector<A> d, A beta) {
    if constexpr (THREE_QUARTERS) {
        // r = d^-1/2 and q = r^-1/2 give p = r (r q), roughly d^-3/4. How roughly, e = 1 - d^3 p^4 tells, multiplied so that no factor
        // leaves the range of floats: d^-3/4 = p (1 - e)^-1/4 = p (1 + e/4 + 5/32 e^2 + ...), whose next term is below 2^-26.
        const Vector<A> r = rough_inverse_root(d), p = r * (r * rough_inverse_root(r));
        const Vector<A> dp = d * p, e = 1 - (dp * dp) * (dp * p);
        const Vector<A> normaliser = p + p * (e * ((A)0.25 + (A)0.15625 * e));
        // 1/d = i / (1 - e) = i (1 + e + e^2 + ...) with a rough inverse i and e = 1 - d i.
        const Vector<A> i = rough_inverse(d), rest = 1 - d * i, inverse = i + i * (rest + rest * rest);
        const Mask<A> infinite = d > Simd<A>::largest;
        return {(Vector<A>)((Mask<A>)normaliser & ~infinite), (Vector<A>)((Mask<A>)(normaliser * inverse) & ~infinite)};
    } else {
        Powers<A> p = {};
        for (int i = 0; i < Simd<A>::lanes; i++) p.normaliser[i] = (A)__builtin_pow((double)d[i], -(double)beta);
        p.slope = p.normaliser / d;
        return p;
    }
}

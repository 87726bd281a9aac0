// ReLU and classic dropout of elements in their logical order; the mask is made where it is applied (kernels/reference.py, `dropout`).

constexpr int COUNTERS = DROPOUT_BLOCK / 4;  // of a block: four words each

// Ten rounds of Philox-4x32 for the counters (first + lane, step, layer, tower): word k of counter i comes to words[4 i + k].
INLINE void draw(const Dropout& mask, int64_t first, uint32_t* words) {
    uint64_t c0[COUNTERS], c1[COUNTERS], c2[COUNTERS], c3[COUNTERS];  // all below 2^32, which a vector can multiply
    for (int i = 0; i < COUNTERS; i++) {
        c0[i] = (uint32_t)(first + i);
        c1[i] = mask.step;
        c2[i] = mask.layer;
        c3[i] = mask.tower;
    }
    uint32_t k0 = mask.key[0], k1 = mask.key[1];
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < COUNTERS; i++) {
            const uint64_t p0 = (uint32_t)c0[i] * (uint64_t)0xD2511F53, p1 = (uint32_t)c2[i] * (uint64_t)0xCD9E8D57;
            c0[i] = (p1 >> 32) ^ c1[i] ^ k0;
            c1[i] = (uint32_t)p1;
            c2[i] = (p0 >> 32) ^ c3[i] ^ k1;
            c3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    for (int i = 0; i < COUNTERS; i++) {
        words[4 * i] = (uint32_t)c0[i];
        words[4 * i + 1] = (uint32_t)c1[i];
        words[4 * i + 2] = (uint32_t)c2[i];
        words[4 * i + 3] = (uint32_t)c3[i];
    }
}

template <typename T>
void relu_dropout(const Dropout& mask, const void* x_, void* y_, int64_t count, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
        uint32_t words[DROPOUT_BLOCK];
        draw(mask, block * COUNTERS, words);
        const int64_t first = block * DROPOUT_BLOCK - mask.before;  // of x; below 0 where a block began before it
        const int64_t there = count - first < DROPOUT_BLOCK ? count - first : DROPOUT_BLOCK;
        for (int64_t i = first < 0 ? -first : 0; i < there; i++) {
            const auto value = widen(((const T*)x_)[first + i]);
            narrow((value < 0 ? 0 : value) * (words[i] >= mask.threshold ? 1 : 0), (T*)y_ + first + i);  // NaN and infinity times 0 are NaN
        }
    }
}

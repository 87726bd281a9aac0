// Bias, ReLU, norm and max-pool of one image after the other, and their gradients; the formulas stand in kernels/reference.py.
//
// Whatever the memory format and the storage type, everything is computed on rows of floats with the channels side by side, and all
// arithmetic is vectors of channels. The few rows in flight stay in the caches, so main memory sees every element of x, y, dy and dx once.

// The normalised rows of an image, computed as they are asked for.
template <typename T, typename A = typename Accumulator<T>::type>
struct NormalisedRows {
    const Problem& p;
    const A* bias;       // padded to whole vectors, or null
    TensorRows<T> images;
    Rows<A> a;           // bias and ReLU applied
    Rows<A> u;           // normalised; the same as `a` where there is no norm
    int64_t loaded = 0, normalised = 0;

    // whole_image: keep all rows, for the backward pass.
    NormalisedRows(const Problem& p, const A* bias, bool whole_image)
        : p(p), bias(bias), images(p, p.height, p.width), a(p, p.norm == SPATIAL || whole_image ? p.height : 1, p.width),
          u(p, whole_image ? p.height : p.pool ? p.pool : 1, p.width) {}

    void start() { loaded = normalised = 0; }

    void load_biased(const T* x, int64_t image, int64_t y, A* to) const {
        const bool relu = p.relu == BEFORE;
        load_row(images.read(x, image, y), to, p.width, p.channels, a.pixel_pitch, [&](Vector<A> v, int64_t, int64_t c) {
            if (bias) v += load<Vector<A>>(bias + c);
            return relu ? (v <= 0 ? Vector<A>{} : v) : v;
        });
    }

    void advance(const T* x, int64_t image, int64_t end) {  // to the rows before `end`
        for (; normalised < end; normalised++) {
            const int64_t y = normalised;
            if (p.norm == NO_NORM) {
                load_biased(x, image, y, u.row(y));
            } else if (p.norm == LRN) {
                load_biased(x, image, y, a.row(y));
                with_known(p, [&](auto known) { lrn_row(known, p, a.row(y), u.row(y), a.pixel_pitch); });
            } else {
                const int64_t below = y + p.size - p.size / 2, needed = below < p.height ? below : p.height;
                for (; loaded < needed; loaded++) load_biased(x, image, loaded, a.row(loaded));
                with_known(p, [&](auto known) { spatial_row(known, p, a, y, u.row(y)); });
            }
        }
    }
};

template <typename T>
void forward(const Problem& p, const void* x, const void* bias, void* y, uint8_t* argmax, int64_t begin, int64_t end) {
    using A = typename Accumulator<T>::type;
    NormalisedRows<T> rows(p, (const A*)bias, false);
    const TensorRows<T> outputs(p, p.out_height, p.out_width);
    const TensorRows<uint8_t> codes(p, p.out_height, p.out_width);
    const Rows<A> maximum(p, 1, p.out_width);
    for (int64_t image = begin; image < end; image++) {
        rows.start();
        for (int64_t oy = 0; oy < p.out_height; oy++) {
            const int64_t below = p.pool ? oy * p.stride + p.pool : oy + 1;
            rows.advance((const T*)x, image, below < p.height ? below : p.height);
            if (p.pool) pool_row(p, rows.u, oy, maximum.row(0), argmax ? codes.place(argmax, image, oy) : nullptr);
            if (argmax) codes.written(argmax, image, oy);
            store_row(p.pool ? maximum.row(0) : rows.u.row(oy), outputs.place((T*)y, image, oy), p.out_width, p.channels,
                      maximum.pixel_pitch, p.relu == AFTER);
            outputs.written((T*)y, image, oy);
        }
    }
}

// The gradient of the normalised values, row by row.
template <typename T, typename A = typename Accumulator<T>::type>
struct GatheredRows {
    const Problem& p;
    const TensorRows<T> gradients;
    const TensorRows<uint8_t> codes;
    const Rows<A> maximum;  // ties "all": of the whole image, before a ReLU that comes after
    PoolGradient<A> pooled;
    int64_t taken = 0;

    explicit GatheredRows(const Problem& p)
        : p(p), gradients(p, p.out_height, p.out_width), codes(p, p.out_height, p.out_width),
          maximum(p, p.pool && p.all_ties ? p.out_height : 1, p.out_width), pooled(p) {}

    void start(const NormalisedRows<T>& rows) {
        taken = 0;
        for (int64_t oy = 0; p.pool && p.all_ties && oy < p.out_height; oy++) pool_row(p, rows.u, oy, maximum.row(oy), nullptr);
    }

    void gather(const T* dy, const uint8_t* argmax, int64_t image, int64_t y, const Rows<A>& u, A* g) {
        const auto as_it_is = [](Vector<A> v, int64_t, int64_t) { return v; };
        if (!p.pool) return load_row(gradients.read(dy, image, y), g, p.width, p.channels, u.pixel_pitch, as_it_is);
        for (const int64_t last = Windows(y, p.out_height, p.pool, p.stride).last; taken <= last; taken++) {
            const T* row = gradients.read(dy, image, taken);
            const A* top = maximum.row(taken);
            if (p.all_ties && p.relu == AFTER)  // nothing comes through where the maximum was not positive
                load_row(row, pooled.dy.row(taken), p.out_width, p.channels, u.pixel_pitch, [&](Vector<A> v, int64_t ox, int64_t c) {
                    return load<Vector<A>>(top + ox * u.pixel_pitch + c) <= 0 ? Vector<A>{} : v;
                });
            else
                load_row(row, pooled.dy.row(taken), p.out_width, p.channels, u.pixel_pitch, as_it_is);
            if (!p.all_ties) memcpy(pooled.codes_row(taken), codes.read(argmax, image, taken), (size_t)pooled.codes_pitch);
        }
        if (p.all_ties)
            gather_row<true>(p, y, pooled, u, maximum, g);
        else
            gather_row<false>(p, y, pooled, u, maximum, g);
    }
};

template <typename T>
void backward(const Problem& p, const void* dy_, const void* x_, const void* bias, const uint8_t* argmax, void* dx_, double* dbias,
              int64_t begin, int64_t end) {
    using A = typename Accumulator<T>::type;
    const T *dy = (const T*)dy_, *x = (const T*)x_;
    T* dx = (T*)dx_;
    const bool spatial = p.norm == SPATIAL, whole_image = spatial || (p.pool && p.all_ties);
    const bool reads_x = p.norm == LRN || p.relu == BEFORE;
    NormalisedRows<T> rows(p, (const A*)bias, whole_image);
    GatheredRows<T> gathered(p);
    const TensorRows<T> results(p, p.height, p.width);
    const Rows<A> g(p, 1, p.width), result(p, 1, p.width);
    const Rows<A> t(p, spatial ? p.height : 1, p.width), scaled(p, t.count, p.width);
    const int64_t pitch = g.pixel_pitch;

    for (int64_t image = begin; image < end; image++) {
        rows.start();
        if (whole_image) rows.advance(x, image, p.height);
        gathered.start(rows);
        for (int64_t y = 0; spatial && y < p.height; y++) {  // a row of dx needs t of the rows below, too
            gathered.gather(dy, argmax, image, y, rows.u, g.row(0));
            with_known(p, [&](auto known) { spatial_terms_row(known, p, rows.a, y, g.row(0), t.row(y), scaled.row(y)); });
        }
        double* sums = dbias ? dbias + image / p.images_a_sum * p.channels : nullptr;
        for (int64_t y = 0; y < p.height; y++) {
            T* to = results.place(dx, image, y);
            if (!spatial) gathered.gather(dy, argmax, image, y, rows.u, g.row(0));
            if (reads_x && !whole_image) rows.load_biased(x, image, y, rows.a.row(y));
            if (p.norm == LRN) {
                with_known(p, [&](auto known) {
                    lrn_backward_row<T>(known, p, rows.a.row(y), g.row(0), t.row(0), scaled.row(0), to, sums, pitch);
                });
            } else {
                if (spatial)
                    spatial_backward_row(p, rows.a, y, t, scaled, result.row(0));
                else
                    gate_row(p, whole_image ? rows.u.row(y) : rows.a.row(y), g.row(0), result.row(0), pitch);
                store_row(result.row(0), to, p.width, p.channels, pitch, false);
                if (sums) add_row(p, result.row(0), sums, pitch);
            }
            results.written(dx, image, y);
        }
    }
}

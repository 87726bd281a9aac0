// The two norms and their gradients on rows with the channels side by side (rows.h): there the LRN's window is a run of neighbours.

// What of a norm is known when it is compiled: the paper's window and exponent. SIZE 0: the problem's.
template <int SIZE, bool THREE_QUARTERS>
struct Known {
    static constexpr int size = SIZE;
    static constexpr bool three_quarters = THREE_QUARTERS;
};

template <typename F>
INLINE void with_known(const Problem& p, const F& f) {
    if (p.size == 5 && p.beta == 0.75)
        f(Known<5, true>());
    else if (p.beta == 0.75)
        f(Known<0, true>());
    else
        f(Known<0, false>());
}

// The powers of d = k + alpha * (sum of a^2 over the channels c - before .. c - before + size - 1), before = size / 2; a: of channel c.
template <typename K, typename A>
INLINE Powers<A> lrn_powers(K, const Problem& p, const A* a) {
    const int64_t size = K::size ? K::size : p.size, before = size / 2;
    Vector<A> sum = {};
    for (int64_t j = 0; j < size; j++) {
        const Vector<A> v = load<Vector<A>>(a - before + j);
        sum += v * v;
    }
    return powers<A, K::three_quarters>((A)p.k + (A)p.alpha * sum, (A)p.beta);
}

// u = a d^-beta.
template <typename K, typename A>
INLINE void lrn_row(K known, const Problem& p, const A* a, A* u, int64_t pitch) {
    for (int64_t x = 0; x < p.width; x++)
        for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
            const A* centre = a + x * pitch + c;
            store_padded(u + x * pitch + c, load<Vector<A>>(centre) * lrn_powers(known, p, centre).normaliser, lanes);
        });
}

// Adds a vector to the channels' sums in double, if there are any.
template <typename V>
INLINE void add_to(double* sums, int64_t c, V v, int64_t lanes) {
    for (int64_t i = 0; sums && i < lanes; i++) sums[c + i] += (double)v[i];
}

// dx, and added to dbias their sum: da_c = g_c d_c^-beta - 2 alpha beta a_c (sum of g_j a_j d_j^(-beta-1) over the j whose window
// holds c). Where a ReLU came before, da is stopped at a <= 0. t, scaled: working memory.
template <typename T, typename K, typename A>
INLINE void lrn_backward_row(K known, const Problem& p, const A* a, const A* g, A* t, A* scaled, T* dx, double* dbias, int64_t pitch) {
    const int64_t size = K::size ? K::size : p.size, after = size - 1 - size / 2;
    const A factor = (A)(2 * p.alpha * p.beta);
    const bool gated = p.relu == BEFORE;
    for (int64_t x = 0; x < p.width; x++)
        for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
            const int64_t offset = x * pitch + c;
            const Powers<A> power = lrn_powers(known, p, a + offset);
            __builtin_prefetch(dx + x * p.channels + c, 1);  // written in the second pass: an eighth of the time was waiting for it
            const Vector<A> gradient = load<Vector<A>>(g + offset);
            store_padded(t + offset, gradient * load<Vector<A>>(a + offset) * power.slope, lanes);
            store_padded(scaled + offset, gradient * power.normaliser, lanes);
        });
    for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
        Vector<A> total = {};
        for (int64_t x = 0; x < p.width; x++) {
            const int64_t offset = x * pitch + c;
            Vector<A> sum = {};
            for (int64_t j = 0; j < size; j++) sum += load<Vector<A>>(t + offset - after + j);
            const Vector<A> centre = load<Vector<A>>(a + offset);
            Vector<A> da = load<Vector<A>>(scaled + offset) - factor * centre * sum;
            if (gated) da = centre <= 0 ? Vector<A>{} : da;
            store_result<T, A>(dx + x * p.channels + c, da, lanes);
            total += da;
        }
        add_to(dbias, c, total, lanes);
    });
}

// The same with the window over size x size positions of the same map; rows and columns outside the map are left out.
template <typename A, typename F>
INLINE Vector<A> sum_around(const Problem& p, const Rows<A>& rows, int64_t y, int64_t x, int64_t c, int64_t before, const F& f) {
    const int64_t after = p.size - 1 - before;
    const int64_t top = y < before ? 0 : y - before, bottom = y + after < p.height ? y + after : p.height - 1;
    const int64_t left = x < before ? 0 : x - before, right = x + after < p.width ? x + after : p.width - 1;
    Vector<A> sum = {};
    for (int64_t i = top; i <= bottom; i++)
        for (int64_t j = left; j <= right; j++) sum += f(load<Vector<A>>(rows.row(i) + j * rows.pixel_pitch + c));
    return sum;
}

template <typename K, typename A>
INLINE Powers<A> spatial_powers(K, const Problem& p, const Rows<A>& a, int64_t y, int64_t x, int64_t c) {
    const Vector<A> sum = sum_around(p, a, y, x, c, p.size / 2, [](Vector<A> v) { return v * v; });
    return powers<A, K::three_quarters>((A)p.k + (A)p.alpha * sum, (A)p.beta);
}

// Row y of the spatial norm.
template <typename K, typename A>
INLINE void spatial_row(K known, const Problem& p, const Rows<A>& a, int64_t y, A* u) {
    for (int64_t x = 0; x < p.width; x++)
        for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
            const int64_t offset = x * a.pixel_pitch + c;
            const Vector<A> centre = load<Vector<A>>(a.row(y) + offset);
            store_padded(u + offset, centre * spatial_powers(known, p, a, y, x, c).normaliser, lanes);
        });
}

// Row y of t = g a d^(-beta-1) and scaled = g d^-beta, g being the gradient of the normalised values.
template <typename K, typename A>
INLINE void spatial_terms_row(K known, const Problem& p, const Rows<A>& a, int64_t y, const A* g, A* t, A* scaled) {
    for (int64_t x = 0; x < p.width; x++)
        for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
            const int64_t offset = x * a.pixel_pitch + c;
            const Vector<A> gradient = load<Vector<A>>(g + offset), centre = load<Vector<A>>(a.row(y) + offset);
            const Powers<A> power = spatial_powers(known, p, a, y, x, c);
            store_padded(t + offset, gradient * centre * power.slope, lanes);
            store_padded(scaled + offset, gradient * power.normaliser, lanes);
        });
}

// Row y of dx = scaled - 2 alpha beta a (sum of t over the positions whose window holds this one).
template <typename A>
INLINE void spatial_backward_row(const Problem& p, const Rows<A>& a, int64_t y, const Rows<A>& t, const Rows<A>& scaled, A* dx) {
    const A factor = (A)(2 * p.alpha * p.beta);
    for (int64_t x = 0; x < p.width; x++)
        for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
            const int64_t offset = x * a.pixel_pitch + c;
            const Vector<A> sum = sum_around(p, t, y, x, c, p.size - 1 - p.size / 2, [](Vector<A> v) { return v; });
            const Vector<A> centre = load<Vector<A>>(a.row(y) + offset);
            store_padded(dx + offset, load<Vector<A>>(scaled.row(y) + offset) - factor * centre * sum, lanes);
        });
}

// The gradient of a ReLU that came before a pool without a norm.
template <typename A>
INLINE void gate_row(const Problem& p, const A* a, const A* g, A* dx, int64_t pitch) {
    for (int64_t x = 0; x < p.width; x++)
        for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
            const Vector<A> gradient = load<Vector<A>>(g + x * pitch + c), value = load<Vector<A>>(a + x * pitch + c);
            store_padded(dx + x * pitch + c, p.relu == BEFORE ? (value <= 0 ? Vector<A>{} : gradient) : gradient, lanes);
        });
}

// Adds a row of dx to the image's share of dbias (C,): in the working precision along the row, in double from row to row.
template <typename A>
INLINE void add_row(const Problem& p, const A* dx, double* dbias, int64_t pitch) {
    for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
        Vector<A> sum = {};
        for (int64_t x = 0; x < p.width; x++) sum += load<Vector<A>>(dx + x * pitch + c);
        add_to(dbias, c, sum, lanes);
    });
}

// Max-pooling of rows with the channels side by side (rows.h), and its gradient.

// One output row: maxima and, if CODES, the cell (row * pool + column) of its window that holds each. POOL 3: pool 3, stride 2;
// POOL 0: the problem's.
template <int POOL, bool CODES, typename A>
INLINE void pool_row_known(const Problem& p, const Rows<A>& u, int64_t oy, A* maximum, uint8_t* codes) {
    const int64_t pool = POOL ? POOL : p.pool, stride = POOL ? POOL - 1 : p.stride;
    const int64_t rows = p.height - oy * stride < pool ? p.height - oy * stride : pool;
    const A* row[15];
    for (int64_t i = 0; i < rows; i++) row[i] = u.row(oy * stride + i);
    for (int64_t ox = 0; ox < p.out_width; ox++) {
        const int64_t columns = p.width - ox * stride < pool ? p.width - ox * stride : pool;
        const bool whole = POOL && rows == pool && columns == pool;
        for_channels<A>(p.channels, EACH_VECTOR(c, lanes) {
            const int64_t offset = ox * stride * u.pixel_pitch + c;
            Vector<A> best = load<Vector<A>>(row[0] + offset);
            Mask<A> code = {};
            const auto meet = [&](int64_t i, int64_t j) __attribute__((always_inline)) {
                const Vector<A> v = load<Vector<A>>(row[i] + offset + j * u.pixel_pitch);
                const Mask<A> better = (v > best) | (v != v);  // the first maximum, but the last NaN, as in PyTorch
                best = better ? v : best;
                if (CODES) code = better ? all_lanes<A>((int32_t)(i * pool + j)) : code;
            };
            if (whole) {
                for (int64_t i = 0; i < POOL; i++)
                    for (int64_t j = 0; j < POOL; j++)
                        if (i || j) meet(i, j);
            } else {
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t j = i == 0; j < columns; j++) meet(i, j);
            }
            if (CODES && p.relu == AFTER) code = best <= 0 ? all_lanes<A>(NOBODY) : code;
            store_padded(maximum + ox * u.pixel_pitch + c, best, lanes);
            if (CODES) {
                uint8_t* to = codes + ox * p.channels + c;
                if (lanes == Simd<A>::lanes)
                    to_bytes(to, code);
                else
                    for (int64_t i = 0; i < lanes; i++) to[i] = (uint8_t)code[i];
            }
        });
    }
}

template <typename A>
INLINE void pool_row(const Problem& p, const Rows<A>& u, int64_t oy, A* maximum, uint8_t* codes) {
    const bool known = p.pool == 3 && p.stride == 2;
    if (codes)
        known ? pool_row_known<3, true>(p, u, oy, maximum, codes) : pool_row_known<0, true>(p, u, oy, maximum, codes);
    else
        known ? pool_row_known<3, false>(p, u, oy, maximum, codes) : pool_row_known<0, false>(p, u, oy, maximum, codes);
}

// The windows that hold position i of an axis: first .. last.
struct Windows {
    int64_t first, last;
    Windows(int64_t i, int64_t windows, int64_t pool, int64_t stride) {
        first = i < pool ? 0 : (i - pool) / stride + 1;
        last = i / stride < windows ? i / stride : windows - 1;
    }
};

// What the backward pass of the pool knows of the output rows that meet an input row.
template <typename A>
struct PoolGradient {
    Rows<A> dy;
    uint8_t* codes;  // ties "first": (rows, OW, C) and a vector to spare
    int64_t codes_pitch;

    explicit PoolGradient(const Problem& p)
        : dy(p, p.pool ? (p.pool + p.stride - 1) / p.stride : 1, p.out_width), codes_pitch(p.out_width * p.channels) {
        codes = (uint8_t*)calloc((size_t)(dy.count * codes_pitch) + 64, 1);
        if (!codes) abort();
    }
    ~PoolGradient() { free(codes); }
    PoolGradient(const PoolGradient&) = delete;
    PoolGradient& operator=(const PoolGradient&) = delete;

    INLINE uint8_t* codes_row(int64_t oy) const { return codes + oy % dy.count * codes_pitch; }
};

// One pixel and one of the windows that hold it.
template <typename A>
struct Meeting {
    const A* dy;
    const uint8_t* codes;
    const A* maximum;
    int32_t cell;  // where in the window the pixel is
};

// Sum over `count` windows of the gradient that each gives to this pixel.
template <bool ALL, typename A>
INLINE void gather_pixel(const Meeting<A>* meetings, int64_t count, const A* u, A* g, int64_t channels) {
    for_channels<A>(channels, EACH_VECTOR(c, lanes) {
        Vector<A> sum = {};
        for (int64_t w = 0; w < count; w++) {
            Mask<A> mine;
            if (ALL)
                mine = load<Vector<A>>(u + c) == load<Vector<A>>(meetings[w].maximum + c);
            else
                mine = load_codes<A>(meetings[w].codes + c) == all_lanes<A>(meetings[w].cell);
            sum += (Vector<A>)((Mask<A>)load<Vector<A>>(meetings[w].dy + c) & mine);
        }
        store_padded(g + c, sum, lanes);
    });
}

// Row y of the gradient of the pool's input. The windows are added in the order of the output.
template <bool ALL, typename A>
INLINE void gather_row(const Problem& p, int64_t y, const PoolGradient<A>& from, const Rows<A>& u, const Rows<A>& maximum, A* g) {
    const Windows vertical(y, p.out_height, p.pool, p.stride);
    Meeting<A> rows[15], meetings[225];  // `rows`: where the windows' rows begin
    int64_t row_count = 0;
    for (int64_t oy = vertical.first; oy <= vertical.last; oy++)
        rows[row_count++] = {from.dy.row(oy), ALL ? nullptr : from.codes_row(oy), ALL ? maximum.row(oy) : nullptr,
                             (int32_t)((y - oy * p.stride) * p.pool)};
    for (int64_t x = 0; x < p.width; x++) {
        const Windows across(x, p.out_width, p.pool, p.stride);
        int64_t count = 0;
        for (int64_t i = 0; i < row_count; i++)
            for (int64_t ox = across.first; ox <= across.last; ox++)
                meetings[count++] = {rows[i].dy + ox * from.dy.pixel_pitch, ALL ? nullptr : rows[i].codes + ox * p.channels,
                                     ALL ? rows[i].maximum + ox * maximum.pixel_pitch : nullptr,
                                     (int32_t)(rows[i].cell + x - ox * p.stride)};
        const A* mine = ALL ? u.row(y) + x * u.pixel_pitch : nullptr;
        A* to = g + x * from.dy.pixel_pitch;
        if (count == 1)
            gather_pixel<ALL>(meetings, 1, mine, to, p.channels);
        else if (count == 2)
            gather_pixel<ALL>(meetings, 2, mine, to, p.channels);
        else if (count == 4)
            gather_pixel<ALL>(meetings, 4, mine, to, p.channels);
        else
            gather_pixel<ALL>(meetings, count, mine, to, p.channels);
    }
}

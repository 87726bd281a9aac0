// The update of paper section 5 on elements [begin, end) of one tensor: v <- momentum v - decay rate w - rate g; w <- w + v.

template <typename T>
void paper_sgd(void* w_, const void* g_, void* v_, double rate_, double momentum_, double decay_, int64_t begin, int64_t end) {
    using A = typename Accumulator<T>::type;
    T *w = (T*)w_, *v = (T*)v_;
    const T* g = (const T*)g_;
    const A rate = (A)rate_, momentum = (A)momentum_, shrink = (A)(decay_ * rate_);
    int64_t i = begin;
    for (; i + Simd<A>::lanes <= end; i += Simd<A>::lanes) {
        const Vector<A> weight = load_elements(w + i);
        const Vector<A> velocity = momentum * load_elements(v + i) - shrink * weight - rate * load_elements(g + i);
        store_elements(v + i, velocity);
        store_elements(w + i, weight + velocity);
    }
    for (; i < end; i++) {
        const A weight = widen(w[i]), velocity = momentum * widen(v[i]) - shrink * weight - rate * widen(g[i]);
        narrow(velocity, v + i);
        narrow(weight + velocity, w + i);
    }
}

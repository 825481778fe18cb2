// Four floats in a NEON register. Included inside the namespace of one instruction set.

struct VecNeon {
  using A = float;
  static constexpr int L = 4;
  static constexpr int MR = 8;  // 24 accumulators, 3 operands, 1 broadcast, of 32 registers
  static constexpr int PV = 3;
  static constexpr bool kTransposes = false;
  float32x4_t v;

  static VecNeon zero() { return {vdupq_n_f32(0)}; }
  static VecNeon set1(float x) { return {vdupq_n_f32(x)}; }
  static VecNeon load(const float* p) { return {vld1q_f32(p)}; }
  static VecNeon load(const float* p, int n) {
    if (n >= L) return load(p);
    const float32x2_t nothing = vdup_n_f32(0);
    if (n <= 0) return zero();
    if (n == 1) return {vcombine_f32(vset_lane_f32(p[0], nothing, 0), nothing)};
    return {vcombine_f32(vld1_f32(p), n == 3 ? vset_lane_f32(p[2], nothing, 0) : nothing)};
  }
  static uint16x4_t load_16bit(const void* p) { return vld1_u16(static_cast<const uint16_t*>(p)); }
  static uint16x4_t load_16bit(const void* p, int n) {
    if (n >= L) return load_16bit(p);
    uint64_t bits = 0;
    for (int i = 0; i < n; ++i) bits |= uint64_t{static_cast<const uint16_t*>(p)[i]} << 16 * i;
    return vcreate_u16(bits);
  }
  static VecNeon widen(uint16x4_t x, BFloat16) { return {vreinterpretq_f32_u32(vshll_n_u16(x, 16))}; }
  static VecNeon widen(uint16x4_t x, Float16) { return {vcvt_f32_f16(vreinterpret_f16_u16(x))}; }
  template <class T>
  static VecNeon load(const T* p) {
    return widen(load_16bit(p), T{});
  }
  template <class T>
  static VecNeon load(const T* p, int n) {
    return widen(load_16bit(p, n), T{});
  }

  void store(float* p) const { vst1q_f32(p, v); }
  void store(float* p, int n) const {
    if (n >= L) return store(p);
    if (n >= 2) vst1_f32(p, vget_low_f32(v));
    if (n == 1) p[0] = vgetq_lane_f32(v, 0);
    if (n == 3) p[2] = vgetq_lane_f32(v, 2);
  }
  uint16x4_t narrow(BFloat16) const {  // round to nearest even, NaN stays NaN
    const uint32x4_t u = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
  }
  uint16x4_t narrow(Float16) const { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
  template <class T>
  void store(T* p) const {
    vst1_u16(reinterpret_cast<uint16_t*>(p), narrow(T{}));
  }
  template <class T>
  void store(T* p, int n) const {
    if (n >= L) return store(p);
    const uint64_t bits = vget_lane_u64(vreinterpret_u64_u16(narrow(T{})), 0);
    for (int i = 0; i < n; ++i) p[i] = T{static_cast<uint16_t>(bits >> 16 * i)};
  }
  static uint8x16_t bytes_of(const int32_t* index) {
    const uint32x4_t first = vmulq_n_u32(vreinterpretq_u32_s32(vld1q_s32(index)), 0x04040404);
    return vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x03020100)));
  }
  static uint8x16_t load_bytes(const float* p) { return vreinterpretq_u8_f32(vld1q_f32(p)); }
  static VecNeon pick(const float* p, const int32_t* index) {  // two registers hold all that index can name
    const uint8x16x2_t both = {{load_bytes(p), load_bytes(p + L)}};
    return {vreinterpretq_f32_u8(vqtbl2q_u8(both, bytes_of(index)))};
  }
  static VecNeon shuffle(const float* p, const int32_t* index) {  // one register holds all that index can name
    return {vreinterpretq_f32_u8(vqtbl1q_u8(load_bytes(p), bytes_of(index)))};
  }
  // Where value is larger than best, or kNaN and the first NaN, it takes best's place and c that of label.
  template <bool kNaN>
  static void keep_larger(VecNeon& best, VecNeon& label, VecNeon value, VecNeon c) {
    uint32x4_t larger = kNaN ? vmvnq_u32(vcleq_f32(value.v, best.v)) : vcgtq_f32(value.v, best.v);
    if (kNaN) larger = vandq_u32(larger, vceqq_f32(best.v, best.v));
    best.v = vbslq_f32(larger, value.v, best.v);
    label.v = vbslq_f32(larger, c.v, label.v);
  }
  static VecNeon fma(VecNeon a, VecNeon b, VecNeon c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  static VecNeon fnma(VecNeon a, VecNeon b, VecNeon c) { return {vfmsq_f32(c.v, a.v, b.v)}; }  // c - a b
  VecNeon operator+(VecNeon o) const { return {vaddq_f32(v, o.v)}; }
  VecNeon operator-(VecNeon o) const { return {vsubq_f32(v, o.v)}; }
  VecNeon operator*(VecNeon o) const { return {vmulq_f32(v, o.v)}; }
  static VecNeon keep(uint32x4_t where, VecNeon x) {
    return {vreinterpretq_f32_u32(vandq_u32(where, vreinterpretq_u32_f32(x.v)))};
  }
  static VecNeon where_positive(VecNeon y, VecNeon g) {  // y <= 0 ? 0 : g, which lets g pass where y is NaN
    return keep(vmvnq_u32(vclezq_f32(y.v)), g);
  }
  // Keeps NaN, and -0 where the floor is 0 as other instruction sets do.
  VecNeon at_least(VecNeon floor) const { return {vbslq_f32(vcgtq_f32(floor.v, v), floor.v, v)}; }
  VecNeon relu() const { return {vmaxq_f32(v, vdupq_n_f32(0))}; }  // keeps NaN
  // The numbers rounded, and what the rounding took away (nothing of infinity and NaN).
  void store_sum(BFloat16* high, BFloat16* low, int n) const {
    const uint16x4_t rounded = narrow(BFloat16{});
    const VecNeon wide = widen(rounded, BFloat16{}), rest = *this - wide;
    wide.store(high, n);
    keep(vceqq_f32(rest.v, rest.v), rest).store(low, n);
  }
  // Integers in the place of floats.
  static VecNeon load_integers(const float* p) {
    return {vcvtq_f32_s32(vld1q_s32(reinterpret_cast<const int32_t*>(p)))};
  }
  // Rounded to integers from 0 to 255, ties to even; NaN becomes 0.
  void store_bytes(uint8_t* p, int n) const {
    const uint16x4_t words = vqmovn_u32(vcvtnq_u32_f32(v));
    const uint8x8_t bytes = vqmovn_u16(vcombine_u16(words, words));
    const uint32_t bits = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    if (n >= L)
      std::memcpy(p, &bits, L);
    else
      for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(bits >> 8 * i);
  }
};

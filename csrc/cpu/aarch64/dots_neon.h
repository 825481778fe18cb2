// Four sums of products of bytes. Included inside the namespace of one instruction set, which may have the dot product.

struct DotsNeon {
  using V = VecNeon;
  using Sums = int32x4_t;
  static constexpr int L = 4, kSums = 24;  // of 32 registers
  static Sums zero() { return vdupq_n_s32(0); }
  static Sums load(const char* p) { return vreinterpretq_s32_s8(vld1q_s8(reinterpret_cast<const int8_t*>(p))); }
  static void store(char* p, Sums x) { vst1q_s8(reinterpret_cast<int8_t*>(p), vreinterpretq_s8_s32(x)); }
  static Sums broadcast(const char* p) { return vdupq_n_s32(four_bytes(p)); }
#ifdef HRNET_FAST_HAS_DOTPROD
  // UDOT wants unsigned bytes on both sides: w + 128. What that adds is 128 times the sum of a, the same for all
  // channels. As text: compilers before Clang 16 have the intrinsic only where a whole file is compiled for it.
  static constexpr bool kOffset = true;
  static Sums dot(Sums sums, Sums a, Sums w) {
    return unsigned_dot(sums, a, veorq_s32(w, vdupq_n_s32(static_cast<int32_t>(0x80808080))));
  }
  static Sums add_bytes(Sums sums, Sums a) { return unsigned_dot(sums, a, vdupq_n_s32(0x01010101)); }
  static Sums without_offset(Sums sums, Sums bytes) { return vsubq_s32(sums, vshlq_n_s32(bytes, 7)); }
  static Sums unsigned_dot(Sums sums, Sums a, Sums w) {
    __asm__("udot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(a), "w"(w));
    return sums;
  }
#else
  // Products of a's lower seven bits are added in pairs in 16 bits, where they fit; w itself where the highest is set.
  static constexpr bool kOffset = false;
  static Sums dot(Sums sums, Sums a, Sums w) {
    const int8x16_t x = vreinterpretq_s8_s32(a), y = vreinterpretq_s8_s32(w);
    const int8x16_t low = vandq_s8(x, vdupq_n_s8(0x7f)), high = vandq_s8(vshrq_n_s8(x, 7), y);
    const int16x8_t first = vmull_s8(vget_low_s8(low), vget_low_s8(y)), second = vmull_high_s8(low, y);
    return vpadalq_s16(vpadalq_s16(sums, vpaddq_s16(first, second)), vshlq_n_s16(vpaddlq_s8(high), 7));
  }
#endif
  // The numbers of pairs in bfloat16.
  static void halves(Sums x, V& even, V& odd) {
    even.v = vreinterpretq_f32_s32(vshlq_n_s32(x, 16));
    odd.v = vreinterpretq_f32_s32(vandq_s32(x, vdupq_n_s32(static_cast<int32_t>(0xffff0000))));
  }
};

"""CRC-32C (Castagnoli polynomial 0x1EDC6F41, reflected 0x82F63B78; RFC 3720 appendix B.4).

The processor's instruction is used where there is one, found out at run time, so that
one wheel serves every machine of an architecture. Otherwise slicing-by-8
(Kounavis and Berry, "Novel Table Lookup-Based Algorithms for High-Performance CRC
Generation", 2008). On x86-64 three parts of long data are computed side by side and put together
(Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", 2011).
"""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    static uint32_t ew_crc_table[8][256];

    static void ew_crc_fill_table(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = i;
            for (int bit = 0; bit < 8; bit++)
                crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0u);
            ew_crc_table[0][i] = crc;
        }
        for (uint32_t i = 0; i < 256; i++)
            for (int slice = 1; slice < 8; slice++) {
                uint32_t crc = ew_crc_table[slice - 1][i];
                ew_crc_table[slice][i] = ew_crc_table[0][crc & 0xff] ^ (crc >> 8);
            }
    }

    static uint32_t ew_crc_portable(uint32_t crc, const uint8_t* at, size_t size) {
        crc = ~crc;
        while (size >= 8) {
            uint32_t low = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
            low ^= crc;
            crc = ew_crc_table[7][low & 0xff] ^ ew_crc_table[6][(low >> 8) & 0xff]
                ^ ew_crc_table[5][(low >> 16) & 0xff] ^ ew_crc_table[4][low >> 24]
                ^ ew_crc_table[3][at[4]] ^ ew_crc_table[2][at[5]]
                ^ ew_crc_table[1][at[6]] ^ ew_crc_table[0][at[7]];
            at += 8;
            size -= 8;
        }
        while (size--)
            crc = ew_crc_table[0][(crc ^ *at++) & 0xff] ^ (crc >> 8);
        return ~crc;
    }

    /* Inline assembly: compilers disagree on the target attribute and the intrinsics that would do the same. */
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
      #define EW_CRC_NATIVE_NAME "sse4.2"
      /* The instruction takes a word each cycle, but its result only after three: three lanes run side by side. */
      #define EW_CRC_LANES 2
      static const size_t ew_crc_lane[EW_CRC_LANES] = {1360, 168};
      static uint32_t ew_crc_zeros[EW_CRC_LANES][4][256];

      /* What so many zero bytes behind it make of each state: linear in the state's bits. */
      static void ew_crc_fill_lanes(void) {
          for (int lane = 0; lane < EW_CRC_LANES; lane++)
              for (int byte = 0; byte < 4; byte++)
                  for (int bit = 0; bit < 8; bit++) {
                      uint32_t crc = (uint32_t)1 << (8 * byte + bit);
                      for (size_t i = 0; i < ew_crc_lane[lane]; i++)
                          crc = ew_crc_table[0][crc & 0xff] ^ (crc >> 8);
                      for (int i = 0; i < 256; i++)
                          if (i >> bit & 1) ew_crc_zeros[lane][byte][i] ^= crc;
                  }
      }

      static inline uint32_t ew_crc_skip(int lane, uint32_t crc) {
          return ew_crc_zeros[lane][0][crc & 0xff] ^ ew_crc_zeros[lane][1][(crc >> 8) & 0xff]
               ^ ew_crc_zeros[lane][2][(crc >> 16) & 0xff] ^ ew_crc_zeros[lane][3][crc >> 24];
      }

      static uint32_t ew_crc_native(uint32_t crc, const uint8_t* at, size_t size) {
          uint64_t wide = (uint32_t)~crc;
          for (int lane = 0; lane < EW_CRC_LANES; lane++) {
              size_t length = ew_crc_lane[lane];
              while (size >= 3 * length) {
                  uint64_t second = 0, third = 0;
                  for (size_t i = 0; i < length; i += 8) {
                      uint64_t a, b, c;
                      memcpy(&a, at + i, 8);
                      memcpy(&b, at + length + i, 8);
                      memcpy(&c, at + 2 * length + i, 8);
                      __asm__("crc32q %1, %0" : "+r"(wide) : "rm"(a));
                      __asm__("crc32q %1, %0" : "+r"(second) : "rm"(b));
                      __asm__("crc32q %1, %0" : "+r"(third) : "rm"(c));
                  }
                  wide = ew_crc_skip(lane, (uint32_t)wide) ^ (uint32_t)second;
                  wide = ew_crc_skip(lane, (uint32_t)wide) ^ (uint32_t)third;
                  at += 3 * length;
                  size -= 3 * length;
              }
          }
          while (size >= 8) {
              uint64_t word;
              memcpy(&word, at, 8);
              __asm__("crc32q %1, %0" : "+r"(wide) : "rm"(word));
              at += 8;
              size -= 8;
          }
          crc = (uint32_t)wide;
          while (size--)
              __asm__("crc32b %1, %0" : "+r"(crc) : "rm"(*at++));
          return ~crc;
      }
      static int ew_crc_have_native(void) { return __builtin_cpu_supports("sse4.2") != 0; }
    #elif defined(__AARCH64EL__) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))
      #include <sys/auxv.h>
      #define EW_CRC_NATIVE_NAME "armv8"
      static uint32_t ew_crc_native(uint32_t crc, const uint8_t* at, size_t size) {
          crc = ~crc;
          while (size >= 8) {
              uint64_t word;
              memcpy(&word, at, 8);
              __asm__(".arch_extension crc\\n\\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
              at += 8;
              size -= 8;
          }
          while (size--) {
              uint32_t byte = *at++;
              __asm__(".arch_extension crc\\n\\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(byte));
          }
          return ~crc;
      }
      static void ew_crc_fill_lanes(void) {}
      static int ew_crc_have_native(void) { return (getauxval(AT_HWCAP) & (1ul << 7)) != 0; } /* HWCAP_CRC32 */
    #else
      #define EW_CRC_NATIVE_NAME "portable"
      #define ew_crc_native ew_crc_portable
      static void ew_crc_fill_lanes(void) {}
      static int ew_crc_have_native(void) { return 0; }
    #endif
    """
    void ew_crc_fill_table() noexcept nogil
    void ew_crc_fill_lanes() noexcept nogil
    uint32_t ew_crc_portable(uint32_t crc, const uint8_t* at, size_t size) noexcept nogil
    uint32_t ew_crc_native(uint32_t crc, const uint8_t* at, size_t size) noexcept nogil
    int ew_crc_have_native() noexcept nogil
    const char* EW_CRC_NATIVE_NAME

ew_crc_fill_table()
ew_crc_fill_lanes()
cdef bint _native = ew_crc_have_native()

# How this machine computes it: "sse4.2", "armv8" or "portable".
implementation = (EW_CRC_NATIVE_NAME if _native else b"portable").decode("ascii")


cdef uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept nogil:
    if _native:
        return ew_crc_native(crc, <const uint8_t*>data, size)
    return ew_crc_portable(crc, <const uint8_t*>data, size)


def checksum(const uint8_t[::1] data, uint32_t value=0):
    """The CRC-32C of `data` (bytes-like), as an int of 32 bits.

    `value` continues an earlier result: `checksum(b, checksum(a)) == checksum(a + b)`.
    """
    return crc32c(value, &data[0] if data.shape[0] else NULL, data.shape[0])


def checksum_portable(const uint8_t[::1] data, uint32_t value=0):
    """`checksum` by tables alone, whatever the processor offers."""
    return ew_crc_portable(value, &data[0] if data.shape[0] else NULL, data.shape[0])

"""CRC-32C (Castagnoli polynomial 0x1EDC6F41, reflected 0x82F63B78; RFC 3720 appendix B.4).

The processor's instruction is used where there is one, found out at run time, so that
one wheel serves every machine of an architecture. Otherwise slicing-by-8
(Kounavis and Berry, "Novel Table Lookup-Based Algorithms for High-Performance CRC
Generation", 2008).
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
      static uint32_t ew_crc_native(uint32_t crc, const uint8_t* at, size_t size) {
          uint64_t wide = (uint32_t)~crc;
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
      static int ew_crc_have_native(void) { return (getauxval(AT_HWCAP) & (1ul << 7)) != 0; } /* HWCAP_CRC32 */
    #else
      #define EW_CRC_NATIVE_NAME "portable"
      #define ew_crc_native ew_crc_portable
      static int ew_crc_have_native(void) { return 0; }
    #endif
    """
    void ew_crc_fill_table() noexcept nogil
    uint32_t ew_crc_portable(uint32_t crc, const uint8_t* at, size_t size) noexcept nogil
    uint32_t ew_crc_native(uint32_t crc, const uint8_t* at, size_t size) noexcept nogil
    int ew_crc_have_native() noexcept nogil
    const char* EW_CRC_NATIVE_NAME

ew_crc_fill_table()
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

/* Software AMX tiles: what the four instructions of the AMX micro-kernel do (Intel SDM vol. 2). */
#include <stdint.h>
#include <string.h>

static _Thread_local uint32_t tiles[8][16][16];
static _Thread_local int configured;

void soft_ldtilecfg(const uint8_t *palette) {
  configured = palette[0] == 1;
  for (int i = 0; i < 8; i++)
    configured = configured && palette[16 + 2 * i] == 64 && palette[48 + i] == 16;
}

void soft_tilezero(int8_t tile) { memset(tiles[tile], 0, sizeof tiles[tile]); }

void soft_tileloadd64(int8_t tile, const char *base, int64_t stride) {
  for (int row = 0; row < 16; row++) memcpy(tiles[tile][row], base + row * stride, 64);
}

void soft_tilestored64(int8_t tile, char *base, int64_t stride) {
  for (int row = 0; row < 16; row++) memcpy(base + row * stride, tiles[tile][row], 64);
}

static float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

void soft_tdpbf16ps(int8_t c, int8_t a, int8_t b) {
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      /* A thread that never configured its tiles faults on silicon; here it spoils the result. */
      float sum = configured ? as_float(tiles[c][m][n]) : 0.0f / 0.0f;
      for (int k = 0; k < 16; k++) {
        uint32_t x = tiles[a][m][k], y = tiles[b][k][n];
        sum += as_float(x << 16) * as_float(y << 16);
        sum += as_float(x & 0xffff0000u) * as_float(y & 0xffff0000u);
      }
      memcpy(&tiles[c][m][n], &sum, 4);
    }
}

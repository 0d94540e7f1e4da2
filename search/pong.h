// Atari Pong as ale-py plays it, frame for frame: game 0, difficulty 0, two paddles of which the
// right one is turned. The game logic is the cartridge's, translated by translate.py into game.h;
// here is what it runs in, and in closed form what its display loop draws, meets and measures.

#ifndef PONG_H
#define PONG_H

#include <stdint.h>
#include <string.h>

enum { PLAYER_0, PLAYER_1, BALL = 4 };                   // the chip's objects; 2 and 3 are unused
enum { OF_PLAYER_0, OF_PLAYER_1, OF_BALL, OF_NOTHING };  // its colours
enum { LOOPS = 91, FOREVER = 1000 };  // of the court, two lines each; a line after all of them
enum { TURNED = 1, LOWEST = 27450, HIGHEST = 790196, TURN = 23000 };  // the paddle; resistances

typedef struct {
    int from, to;  // lines, the first and the one after the last; none where they are equal
} Lines;

typedef struct {
    uint8_t ram[128];
    // the chip that draws
    uint8_t ball_met[4], ball_met_wall;  // ball against player 0 and 1, and against the walls
    uint8_t colours[4];
    uint8_t motion[8], ball_delayed;  // VDELBL: the ball is switched when player 1 is written
    int x[8];
    // what is plugged in
    uint8_t joystick, switches;
    int paddle[2];
    int score, over;
    // what the last court showed; lines count from the first of its loop
    uint8_t shown_colours[4];
    int shown_x[8];
    Lines player[2], ball[2];  // the ball is two pixels, which may be switched on different lines
} Pong;

// The processor. Flags N and Z are kept as the value they tell of.
typedef struct {
    uint8_t a, x, y, sp, negative, zero, carry, overflow;
} Cpu;

// An object is placed where the beam is, some pixels later; 228 clocks make a line, 68 unseen.
static inline void pong_place(Pong *pong, int object, int clock) {
    int h = clock % 228, later = object <= PLAYER_1 ? 5 : 4;
    pong->x[object] = h < 68 ? later - 2 : (h - 68 + later) % 160;
}

static inline void pong_move(Pong *pong) {
    for (int i = 0; i < 5; i++) {
        int h = pong->motion[i] >> 4, left = h < 8 ? h : h - 16;
        pong->x[i] = (pong->x[i] - left + 160) % 160;
    }
}

// How many of the loops find the paddle's capacitor not yet charged.
static inline int pong_uncharged(int resistance) {
    int cycles = (int)((1.6 * resistance * 0.01E-6) * 1.19E6) - 17 - 76 * 32;
    int loops = cycles < 0 ? 0 : cycles / 152 + 1;
    return loops > LOOPS ? LOOPS : loops;
}

// Lines of a player, 8 loops high. Loop 0 compares y with `first`, an even number; what a loop
// switches is seen from its line `line` on.
static inline Lines pong_player(int y, int first, int line) {
    int on = (y + (y & 1) - first) / 2, off = on + 8;
    if (off <= 0 || on >= LOOPS) return (Lines){0, 0};
    return (Lines){2 * (on < 0 ? 0 : on) + line, off >= LOOPS ? FOREVER : 2 * off + line};
}

static inline int pong_share(Lines one, Lines other) {
    return (one.from > other.from ? one.from : other.from) <
           (one.to < other.to ? one.to : other.to);
}

static inline int pong_in(int line, Lines lines) { return line >= lines.from && line < lines.to; }

// Where in its line a loop switches the ball: pixels to the left of that see it a line later. How
// long it takes to get there depends on the branches taken before.
static inline int pong_switched_at(const Pong *pong, int loop, int uncharged) {
    int x = loop ? 127 + 6 * (loop <= uncharged) : 124;
    x += pong->ball_delayed ? 22 : 3 * !pong_in(2 * loop + 2, pong->player[0]);
    return x + 3 * !pong_in(2 * loop + 1, pong->player[1]);
}

// The loop that draws the court, with walls above and below.
static inline void pong_court(Pong *pong) {
    uint8_t *ram = pong->ram;
    int uncharged = pong_uncharged(pong->paddle[ram[0] & 1]);  // each is looked at in its turn
    ram[4] = 0x26 + 2 * uncharged;
    ram[5] = 0x26;
    memcpy(pong->shown_colours, pong->colours, sizeof pong->colours);
    memcpy(pong->shown_x, pong->x, sizeof pong->x);
    pong->player[0] = pong_player(ram[0x32], 0x28, 2);
    pong->player[1] = pong_player(ram[0x33], 0x26, 1);
    pong->ball[0] = pong->ball[1] = (Lines){0, 0};

    int y = ram[0x36], loop = (y + (y & 1) - 0x28) / 2, late = pong->ball_delayed;
    int on = (loop < 0 ? 0 : loop) + late, off = loop + 2 + late;
    if (off < 1 + late || on >= LOOPS) return;
    int on_line = 2 * on + !late, on_x = pong_switched_at(pong, on, uncharged);
    int off_line = FOREVER, off_x = 0;
    if (off < LOOPS) {
        off_line = 2 * off + !late;
        off_x = pong_switched_at(pong, off, uncharged);
    }
    for (int k = 0; k < 2; k++) {
        int x = (pong->x[BALL] + k) % 160;
        Lines ball = pong->ball[k] = (Lines){on_line + (x < on_x), off_line + (x < off_x)};
        for (int player = 0; player < 2; player++)
            if ((unsigned)(x - pong->x[player]) < 4 && pong_share(ball, pong->player[player]))
                pong->ball_met[player] |= 0x40;
        if (ball.from < ball.to && (pong_share(ball, (Lines){1, 11}) || ball.to > 171))
            pong->ball_met_wall = 0x80;
    }
}

#define FLAGS(value) (cpu.negative = cpu.zero = (value))
#define ADD(value)                                                         \
    {                                                                      \
        unsigned other = (value), sum = cpu.a + other + cpu.carry;         \
        cpu.overflow = ((~(cpu.a ^ other) & (cpu.a ^ sum)) >> 7) & 1;      \
        cpu.carry = (sum >> 8) & 1;                                        \
        FLAGS(cpu.a = sum);                                                \
    }
#define COMPARE(mine, value)                   \
    {                                          \
        uint8_t other = (value);               \
        cpu.carry = (mine) >= other;           \
        FLAGS((mine) - other);                 \
    }
#define TEST_BITS(value)                       \
    {                                          \
        cpu.negative = (value);                \
        cpu.overflow = cpu.negative >> 6 & 1;  \
        cpu.zero = cpu.a & cpu.negative;       \
    }
#define ROTATE_RIGHT(value)                      \
    {                                            \
        uint8_t bit = (value) & 1;               \
        FLAGS((value) = (value) >> 1 | cpu.carry << 7); \
        cpu.carry = bit;                         \
    }
#define PUSH(value) (ram[cpu.sp-- & 0x7f] = (value))
#define STATUS \
    ((cpu.negative & 0x80) | cpu.overflow << 6 | 0x34 | (cpu.zero ? 0 : 2) | cpu.carry)
#include "game.h"
#undef FLAGS
#undef ADD
#undef COMPARE
#undef TEST_BITS
#undef ROTATE_RIGHT
#undef PUSH
#undef STATUS

// Play a frame; its reward. Actions: nothing, fire, right, left, right and left with fire.
static inline int pong_frame(Pong *pong, int action, int reset_pressed, int cold) {
    int paddle = pong->paddle[TURNED];
    if (action == 2 || action == 4) paddle -= TURN;
    if (action == 3 || action == 5) paddle += TURN;
    if (paddle < LOWEST) paddle = LOWEST;
    pong->paddle[TURNED] = paddle > HIGHEST ? HIGHEST : paddle;
    pong->joystick = action == 1 || action >= 4 ? 0xbf : 0xff;
    pong->switches = reset_pressed ? 0x3e : 0x3f;
    pong_run(pong, cold);
    int score = pong->ram[14] - pong->ram[13], reward = score - pong->score;
    pong->score = score;
    pong->over = pong->ram[13] == 21 || pong->ram[14] == 21;
    return reward;
}

// ALE's `act`: nothing happens once the game is over.
static inline int pong_act(Pong *pong, int action) {
    return pong->over ? 0 : pong_frame(pong, action, 0, 0);
}

// ALE's `reset_game`: a second without, and some frames with the console's button pressed.
static void pong_reset(Pong *pong) {
    memset(pong, 0, sizeof *pong);
    pong->paddle[0] = pong->paddle[1] = (LOWEST + HIGHEST) / 2;
    for (int i = 0; i < 60; i++) pong_frame(pong, 0, 0, i == 0);
    for (int i = 0; i < 4; i++) pong_frame(pong, 0, 1, 0);
    pong->score = pong->over = 0;
    for (int i = 0; i < 8; i++) pong_frame(pong, 0, 1, 0);
}

// Whether preprocessing.py leaves a colour in.
static inline int pong_is_ink(int colour) {
    static const uint8_t erased[] = {0, 34, 48, 128, 144, 160, 176, 192, 206, 228};
    return !memchr(erased, colour & 0xfe, sizeof erased);
}

// The active pixels of the screen, as preprocessing.active_pixels has them, whatever its colours;
// how many.
static int pong_pixels_of_any_colour(const Pong *pong, int *pixels) {
    int n = 0;
    for (int row = 0; row < 80; row++) {
        for (int column = 0; column < 80; column++) {
            int line = 12 + 2 * row, x = 2 * column, shown = OF_NOTHING;
            int k = (x - pong->shown_x[BALL] + 160) % 160;
            for (int player = 1; player >= 0; player--) {
                int inside = (unsigned)(x - pong->shown_x[player]) < 4;
                if (inside && pong_in(line, pong->player[player])) shown = player;
            }
            if (k < 2 && pong_in(line, pong->ball[k])) shown = OF_BALL;
            if (pong_is_ink(pong->shown_colours[shown])) pixels[n++] = 80 * row + column;
        }
    }
    return n;
}

// Lines -> rows of the input.
static inline Lines pong_rows(Lines lines) {
    int from = (lines.from - 11) >> 1, to = (lines.to - 11) >> 1;
    return (Lines){from < 0 ? 0 : from, to > 80 ? 80 : to};
}

// The same, fast in the usual colours.
static inline int pong_pixels(const Pong *pong, int *pixels) {
    static const uint8_t usual[4] = {0x38, 0xc8, 0x0f, 0x22};
    const int *x = pong->shown_x;
    if (memcmp(pong->shown_colours, usual, 4) || x[PLAYER_0] > 156 || x[PLAYER_1] > 156)
        return pong_pixels_of_any_colour(pong, pixels);
    int odd = x[BALL] & 1, n = 0;
    Lines rows[3] = {pong_rows(pong->player[0]), pong_rows(pong->player[1]),
                     pong_rows(pong->ball[odd])};
    unsigned __int128 columns[3] = {(unsigned __int128)3 << ((x[PLAYER_0] + 1) >> 1),
                                    (unsigned __int128)3 << ((x[PLAYER_1] + 1) >> 1),
                                    (unsigned __int128)1 << (((x[BALL] + odd) >> 1) % 80)};
    int from = 80, to = 0;
    for (int i = 0; i < 3; i++) {
        if (rows[i].from >= rows[i].to) continue;
        if (rows[i].from < from) from = rows[i].from;
        if (rows[i].to > to) to = rows[i].to;
    }
    for (int row = from; row < to; row++) {
        unsigned __int128 on = 0;
        for (int i = 0; i < 3; i++)
            if (pong_in(row, rows[i])) on |= columns[i];
        for (; on; on &= on - 1) {
            uint64_t low = on, high = on >> 64;
            pixels[n++] = 80 * row + (low ? __builtin_ctzll(low) : 64 + __builtin_ctzll(high));
        }
    }
    return n;
}

#endif

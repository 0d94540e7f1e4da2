// What test_search.py asks of search/a3c.c and pong.h.

#define main a3c_main
#include "a3c.c"

static Pong pong;

void reset(void) { pong_reset(&pong); }
int act(int action) { return pong_act(&pong, action); }
int over(void) { return pong.over; }
uint8_t *ram(void) { return pong.ram; }
int active_pixels(int *pixels) { return pong_pixels(&pong, pixels); }

int set(const char *name, double number) { return set_option(name, number); }
float *weights(int which) { return (float *[]){kernel, bias, heads, head_bias}[which]; }
void build_networks(void) { new_networks(); }
void put_step(int t, int count, const int *inputs, int action, float reward) {
    rollout[t].count = count;
    memcpy(rollout[t].inputs, inputs, count * sizeof *inputs);
    rollout[t].action = action;
    rollout[t].reward = reward;
    forward(&rollout[t]);
}
void learn(int n, int terminal, double steps_done) {
    update(n, terminal ? 0 : rollout[n].value, terminal, steps_done);
}

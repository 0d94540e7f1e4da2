// What test_search.py asks of search/a3c.c and pong.h.

#define main a3c_main
#include "a3c.c"

static Pong pong;
static Networks locals[2];

void reset(void) { pong_reset(&pong); }
int act(int action) { return pong_act(&pong, action); }
int over(void) { return pong.over; }
uint8_t *ram(void) { return pong.ram; }
int active_pixels(int *pixels) { return pong_pixels(&pong, pixels); }

int set(const char *name, double number) { return set_option(name, number); }
float *weights(int which) {
    return (float *[]){global.kernel, global.bias, global.heads, global.head_bias}[which];
}
void build_networks(void) { new_networks(); }
void pull_global(int worker) { pull(&locals[worker]); }
void put_step(int worker, int t, int count, const int *active, int action, float reward) {
    rollout[t].count = count;
    memcpy(rollout[t].inputs, active, count * sizeof *active);
    rollout[t].action = action;
    rollout[t].reward = reward;
    forward(&rollout[t], &locals[worker]);
}
void learn(int worker, int n, int terminal, double steps_done) {
    update(n, &locals[worker], terminal ? 0 : rollout[n].value, terminal, steps_done);
}

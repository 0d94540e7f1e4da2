// What test_search.py asks of search/a3c.c and pong.h.

#define main a3c_main
#include "a3c.c"

static Pong pong;
static Worker workers[2];

void reset(void) { pong_reset(&pong); }
int act(int action) { return pong_act(&pong, action); }
int over(void) { return pong.over; }
uint8_t *ram(void) { return pong.ram; }
int active_pixels(int *pixels) { return pong_pixels(&pong, pixels); }

int set(const char *name, double number) { return set_option(name, number); }
static float *numbers(Networks *net, int which) {
    return (float *[]){net->kernel, net->bias, net->heads, net->head_bias}[which];
}
float *weights(int which) { return numbers(&global, which); }
float *mean_squares(int which) { return numbers(&squares, which); }
void lose(double share) { lost = share; }
void build_networks(void) { new_networks(); }
long *touched(void) { return touched_by; }
int read_from(const char *path, long *steps) { return read_state(path, steps); }
void pull_global(int worker) { pull(&workers[worker].local); }
void put_step(int worker, int t, int count, const int *active, int action, float reward) {
    Step *step = &workers[worker].rollout[t];
    step->count = count;
    memcpy(step->inputs, active, count * sizeof *active);
    step->action = action;
    step->reward = reward;
    forward(step, &workers[worker].local);
}
void learn(int worker, int n, int terminal, double steps_done) {
    update(workers[worker].rollout, n, &workers[worker].local, terminal, steps_done);
}

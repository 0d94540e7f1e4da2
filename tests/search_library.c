// What test_search.py asks of search/a3c.c and pong.h.

#define main a3c_main
#include "a3c.c"

static Pong pong;
static Worker *workers;
static Gradients gradients[2];

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
void build_networks(void) {
    new_networks();
    workers = new_workers(2);
    for (int i = 0; i < 2; i++) new_gradients(&gradients[i]);
}
long *touched(void) { return touched_by; }
int read_from(const char *path, long *steps) { return read_state(path, steps); }

// What play_rollout does, with a rollout that has been played elsewhere.
void put_step(int worker, int t, int count, const int *active, int action, float reward) {
    Step *step = &workers[worker].rollout[t];
    step->count = count;
    memcpy(step->inputs, active, count * sizeof *active);
    step->action = action;
    step->reward = reward;
    forward(step, &global);
}
void end_rollout(int worker, int n, int terminal) {
    workers[worker].steps = n;
    workers[worker].terminal = terminal;
    memcpy(workers[worker].heads, global.heads, sizeof global.heads);
}
void refresh(void) { refresh_target(); }
double epsilon(double final, double steps_done) {
    Worker worker = {.epsilon = final};
    return epsilon_at(&worker, steps_done);
}
void pull_global(int worker) { pull(&workers[worker]); }
void find_gradients(int worker, double steps_done) {
    learn(&workers[worker], steps_done, &gradients[worker]);
}
void update_global(int worker) { push(&gradients[worker]); }

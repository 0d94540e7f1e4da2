// The learner of `a3c_pong.py --preset rally`, written again beside Pong's compiled game (pong.h).
//
//     a3c [name=number ...] [from=FILE] [epsilons=NUMBER,...]
//
// The names are OPTIONS below, most of them those of a3c_pong.Settings. FILE is a state of run.py's.
// The epsilons are those that the workers end with, in turn; without them each draws its own.
//
// Workers take turns. A worker's copy of the weights does two things: the worker plays its next
// rollout with it, and the gradients are computed from it. So the worker plays that rollout at the
// moment of the pull, with the global weights themselves, and keeps the rollout until its next
// turn. Of the weights nothing has to be copied but the heads. The networks, returns, losses and
// RMSProp are a3c_pong.py's. A seed gives the same run again.
//
// Every `every` steps it prints a line "steps score entropy games": the moving true score, and the
// policy's mean entropy since the line before.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "pong.h"

// Each option's name, and its default, which is the preset's. Those that Settings does not have:
//
// mean         1: the loss is the mean over a rollout's steps; 0: the sum
// method       0: a3c, 1: one-step Q, 2: one-step SARSA, 3: n-step Q
// pull         0: after a worker's update, as in the chapter; 1: before it; 2: both
// lag          other workers' updates between a worker's gradients and its update, as on many cores
// rate_power   the learning rates are multiplied by ((21 - recent score) / 42 / rate_falls_below,
//              from 0.01 to 1) ** it
// average      decay, per update, of a mean of the weights, which plays the `eval` games; 0: none
// eval         games to play at the end, with sampled and with greedy actions (Q methods: greedy)
// eval_every   steps after which the games are played on the way, too; 0: never
//
// anneal_steps 0 is never, lost_game_reward 0 is none.
#define OPTIONS(X)                                                                            \
    X(seed, 1) X(steps, 10e6) X(workers, 2) X(frames, 2) X(global_iteration_update, 120)      \
    X(gamma, 1) X(gae_lambda, .95) X(cut_at_points, 1)                                        \
    X(lost_game_reward, 0) X(mean, 0) X(beta, .02) X(beta_power, 3) X(lr_actor, 5e-4)         \
    X(lr_critic, 2e-3) X(rate_falls_below, .25) X(rate_power, .5) X(anneal_steps, 0)          \
    X(rmsprop_decay, .975) X(rmsprop_epsilon, 5e-5)                                           \
    X(method, 0) X(lr_q, 1e-4) X(target_steps, 10e3) X(epsilon_frames, 4e6)                   \
    X(pull, 2) X(lag, 0) X(average, 0)                                                        \
    X(every, 50e3) X(eval, 0) X(eval_every, 0)
static struct {
#define DECLARE(name, value) double name;
    OPTIONS(DECLARE)
} option = {
#define DEFAULT(name, value) value,
    OPTIONS(DEFAULT)};

static int set_option(const char *name, double number) {
#define SET(option_name, value)          \
    if (!strcmp(name, #option_name)) {   \
        option.option_name = number;     \
        return 1;                        \
    }
    OPTIONS(SET)
    return 0;
}

enum { A3C, ONE_STEP_Q, ONE_STEP_SARSA, N_STEP_Q };  // option.method
enum { ACTOR = 300, CRITIC = 100, UNITS = ACTOR + CRITIC, ACTIONS = 6 };
enum { HEADS = ACTIONS * ACTOR + CRITIC };  // weights of the actor's six outputs, then the critic's
enum { INPUT_SIZE = 80 * 80, MAX_FRAMES = 3, MAX_STEPS = 2000 };
enum { GAME_FRAMES = 108000 };  // after which ALE cuts a game off
// In play some 40 pixels are on; more where colours cycle, long after a game.
enum { MAX_SEEN = 95, MAX_INPUTS = MAX_FRAMES * MAX_SEEN };

// ------------------------------------------------------------------------------------ randomness

static uint64_t random_state[4];  // xoshiro256**, seeded by splitmix64

static uint64_t rotated(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t random_bits(void) {
    uint64_t *s = random_state, result = rotated(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0], s[3] ^= s[1], s[1] ^= s[2], s[0] ^= s[3], s[2] ^= t;
    s[3] = rotated(s[3], 45);
    return result;
}

static double uniform(void) { return (random_bits() >> 11) * 0x1p-53; }

static double normal(void) {
    double u = uniform() + 1e-300, v = uniform();
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

static void seed_randomness(uint64_t s) {
    for (int i = 0; i < 4; i++) {
        uint64_t z = s += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        random_state[i] = z ^ z >> 31;
    }
}

// --------------------------------------------------------------------------------------- playing

typedef struct {
    Pong pong;
    int last_action, over, score, frames;
    int seen[MAX_FRAMES][MAX_SEEN], seen_count[MAX_FRAMES];  // newest first
    int state[MAX_INPUTS], state_count;                      // the active inputs
    long total_steps;
} Game;

// Take the screen into the state; a game's first one stands for those before it, too.
static void see(Game *game, int first) {
    int pixels[INPUT_SIZE], count = option.frames, n = pong_pixels(&game->pong, pixels);
    for (int i = count - 1; i > 0 && !first; i--) {
        memcpy(game->seen[i], game->seen[i - 1], sizeof game->seen[i]);
        game->seen_count[i] = game->seen_count[i - 1];
    }
    if (n > MAX_SEEN) n = MAX_SEEN;
    for (int i = 0; i < (first ? count : 1); i++) {
        memcpy(game->seen[i], pixels, n * sizeof *pixels);
        game->seen_count[i] = n;
    }
    game->state_count = 0;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < game->seen_count[i]; j++)
            game->state[game->state_count++] = i * INPUT_SIZE + game->seen[i][j];
}

static void new_game(Game *game) {
    pong_reset(&game->pong);
    game->last_action = game->over = game->score = game->frames = 0;
    see(game, 1);
}

// A step of Pong-v0: two to four frames, in each of which the action before may stick.
static int play(Game *game, int action) {
    int reward = 0, count = 2 + random_bits() % 3;
    for (int i = 0; i < count; i++) {
        if (uniform() >= .25) game->last_action = action;
        reward += pong_act(&game->pong, game->last_action);
    }
    see(game, 0);
    game->frames += count;
    game->over = game->pong.over || game->frames >= GAME_FRAMES;
    game->score += reward;
    return reward;
}

// -------------------------------------------------------------------------------------- networks

typedef struct {  // a state, what the networks make of it, and what was done
    int count, inputs[MAX_INPUTS];
    float layer[UNITS] __attribute__((aligned(64)));
    float policy[ACTIONS];  // of a Q method: Q
    float value;            // of a Q method: the target network's Q of what follows
    int action;
    float reward;
} Step;

typedef struct {    // weights of both networks
    float *kernel;  // [inputs][UNITS]; a row is an input's
    float bias[UNITS] __attribute__((aligned(64))), heads[HEADS], head_bias[ACTIONS + 1];
} Networks;

// RMSProp's mean squares, of which the kernel's are decayed when their row is met again; and a
// moving mean of the weights, of which a row is brought up to date when the row changes.
static Networks global, squares, averaged, target;
static long updates;
static long *touched_by, *averaged_by;  // [inputs]: the last update in it
static size_t inputs;

// Zeros in memory that add_rows can read a vector at a time.
static void *zeros(size_t count, size_t size) {
    size_t bytes = (count * size + 63) / 64 * 64;
    return memset(aligned_alloc(64, bytes), 0, bytes);
}

static float *new_rows(size_t rows) { return zeros(rows, UNITS * sizeof(float)); }

static void new_networks(void) {
    inputs = (size_t)option.frames * INPUT_SIZE;
    size_t size = inputs * UNITS;
    global.kernel = new_rows(inputs);
    squares.kernel = new_rows(inputs);
    touched_by = calloc(inputs, sizeof(long));
    averaged_by = calloc(inputs, sizeof(long));
    for (size_t i = 0; i < size; i++) global.kernel[i] = .1 * normal(), squares.kernel[i] = 1;
    for (int i = 0; i < HEADS; i++) {
        global.heads[i] = .1 * normal();
        squares.heads[i] = 1;
    }
    for (int i = 0; i < UNITS; i++) squares.bias[i] = 1;
    for (int i = 0; i <= ACTIONS; i++) squares.head_bias[i] = 1;
}

// Go on from a state as run.py writes it: steps and updates so far, the update that last had each
// input, weights, mean squares. 0: it does not fit.
static int read_state(const char *path, long *steps_done) {
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    size_t read = fread(steps_done, sizeof(long), 1, file);
    read += fread(&updates, sizeof(long), 1, file);
    read += fread(touched_by, sizeof(long), inputs, file);
    Networks *both[] = {&global, &squares};
    for (int i = 0; i < 2; i++) {
        read += fread(both[i]->kernel, sizeof(float), inputs * UNITS, file);
        read += fread(both[i]->bias, sizeof(float), UNITS, file);
        read += fread(both[i]->heads, sizeof(float), HEADS, file);
        read += fread(both[i]->head_bias, sizeof(float), ACTIONS + 1, file);
    }
    int whole = read == 2 + inputs + 2 * (inputs * UNITS + UNITS + HEADS + ACTIONS + 1);
    whole = whole && fgetc(file) == EOF;
    fclose(file);
    return whole;
}

static void copy_networks(Networks *to, const Networks *from) {
    float *kernel = to->kernel ? to->kernel : new_rows(inputs);
    *to = *from;
    to->kernel = memcpy(kernel, from->kernel, inputs * UNITS * sizeof(float));
}

// Add rows, of the given numbers, to a sum, piece by piece in the processor's registers.
static void add_rows(float *sum, const float *rows, const int *numbers, int count) {
    typedef float Vector __attribute__((vector_size(64), may_alias));
    enum { PIECE = 5, PIECES = UNITS / 16 / PIECE };
    int pieces = option.method == A3C ? PIECES : (ACTOR - 1) / 16 / PIECE + 1;
    for (int piece = 0; piece < pieces; piece++) {
        Vector *to = (Vector *)sum + PIECE * piece;
        Vector a = to[0], b = to[1], c = to[2], d = to[3], e = to[4];
        for (int i = 0; i < count; i++) {
            const float *row = rows + (size_t)numbers[i] * UNITS;
            const Vector *from = (const Vector *)row + PIECE * piece;
            a += from[0], b += from[1], c += from[2], d += from[3], e += from[4];
        }
        to[0] = a, to[1] = b, to[2] = c, to[3] = d, to[4] = e;
    }
}

// A Q method has the actor's network alone, whose outputs are Q.
static void forward(Step *step, const Networks *net) {
    float *layer = step->layer, highest = -1e30f, sum = 0;
    memcpy(layer, net->bias, sizeof net->bias);
    add_rows(layer, net->kernel, step->inputs, step->count);
    for (int j = 0; j < UNITS; j++) {  // relu6
        float x = layer[j] < 0 ? 0 : layer[j];
        layer[j] = x > 6 ? 6 : x;
    }
    for (int a = 0; a < ACTIONS; a++) {
        float logit = net->head_bias[a];
        for (int j = 0; j < ACTOR; j++) logit += layer[j] * net->heads[a * ACTOR + j];
        step->policy[a] = logit;
        if (logit > highest) highest = logit;
    }
    if (option.method != A3C) return;
    for (int a = 0; a < ACTIONS; a++) sum += step->policy[a] = expf(step->policy[a] - highest);
    for (int a = 0; a < ACTIONS; a++) step->policy[a] /= sum;
    float value = net->head_bias[ACTIONS];
    const float *head = net->heads + ACTIONS * ACTOR;
    for (int j = 0; j < CRITIC; j++) value += layer[ACTOR + j] * head[j];
    step->value = value;
}

static void look(Step *step, const Game *game, const Networks *net) {
    step->count = game->state_count;
    memcpy(step->inputs, game->state, game->state_count * sizeof *game->state);
    forward(step, net);
}

static int sampled(const Step *step) {
    double u = uniform();
    for (int a = 0; a < ACTIONS; a++)
        if ((u -= step->policy[a]) < 0) return a;
    return ACTIONS - 1;
}

// The best action; the first of several.
static int greedy(const Step *step) {
    int best = 0;
    for (int a = 1; a < ACTIONS; a++)
        if (step->policy[a] > step->policy[best]) best = a;
    return best;
}

// --------------------------------------------------------------------------------------- workers

typedef struct {
    Game game;
    Step *rollout;  // played, and not yet learned from; the last is the state after it
    int steps, terminal;
    float heads[HEADS];  // of the worker's copy of the weights
    double epsilon;      // what the probability of a random action ends with
} Worker;

static Worker *new_workers(int count) {
    Worker *workers = zeros(count, sizeof(Worker));
    for (int i = 0; i < count; i++)
        workers[i].rollout = zeros(option.global_iteration_update + 1, sizeof(Step));
    return workers;
}

// Take the global weights as the worker's copy. What the networks make of a rollout that was played
// with an older copy is computed again.
static void pull(Worker *worker) {
    memcpy(worker->heads, global.heads, sizeof global.heads);
    for (int t = 0; t <= worker->steps; t++) forward(&worker->rollout[t], &global);
}

// The probability of a random action: it falls from 1, and a step is 3 frames in the mean.
static double epsilon_at(const Worker *worker, double steps_done) {
    double left = fmax(0, 1 - steps_done / (option.epsilon_frames / 3));
    return worker->epsilon + (1 - worker->epsilon) * left;
}

static int chosen(const Step *step, double epsilon) {
    if (option.method == A3C) return sampled(step);
    return uniform() < epsilon ? (int)(random_bits() % ACTIONS) : greedy(step);
}

// Play with the global weights, which the worker has just pulled, to the worker's next multiple of
// global_iteration_update or to the game's end.
static void play_rollout(Worker *worker, double steps_done) {
    Game *game = &worker->game;
    double epsilon = epsilon_at(worker, steps_done);
    int ahead = option.method == ONE_STEP_SARSA && !game->over && game->total_steps > 0;
    int next_action = ahead ? worker->rollout[worker->steps].action : -1;
    if (game->over) new_game(game);
    int period = option.global_iteration_update, n = 0;
    int most = period - game->total_steps % period;
    for (; n < most && !game->over; n++) {
        Step *step = &worker->rollout[n];
        look(step, game, &global);
        step->action = next_action >= 0 ? next_action : chosen(step, epsilon);
        next_action = -1;
        step->reward = play(game, step->action);
    }
    game->total_steps += n;
    look(&worker->rollout[n], game, &global);
    if (option.method == ONE_STEP_SARSA)
        worker->rollout[n].action = chosen(&worker->rollout[n], epsilon);
    worker->steps = n, worker->terminal = game->pong.over;
    memcpy(worker->heads, global.heads, sizeof global.heads);
}

// -------------------------------------------------------------------------------------- learning

typedef struct {    // of a rollout's losses
    float *kernel;  // [rows][UNITS], only those of the rollout's inputs
    int *input_of, rows;
    float bias[UNITS] __attribute__((aligned(64))), heads[HEADS], head_bias[ACTIONS + 1];
    double scale;  // of the learning rates that they are to be applied with
} Gradients;

static void new_gradients(Gradients *gradients) {
    gradients->kernel = new_rows(inputs);
    gradients->input_of = malloc(inputs * sizeof(int));
}

// Make the target network a copy of the global one, again where its rows have changed.
static void refresh_target(void) {
    static long refreshed;
    if (!target.kernel) copy_networks(&target, &global);
    for (size_t i = 0; i < inputs; i++)
        if (touched_by[i] > refreshed)
            memcpy(target.kernel + i * UNITS, global.kernel + i * UNITS, UNITS * sizeof(float));
    memcpy(target.bias, global.bias, sizeof global.bias);
    memcpy(target.heads, global.heads, sizeof global.heads);
    memcpy(target.head_bias, global.head_bias, sizeof global.head_bias);
    refreshed = updates;
}

// What the target network says of the states that returns are to end with; n-step Q: of the last.
static void find_target_values(Step *rollout, int n) {
    static Step copy;
    for (int t = option.method == N_STEP_Q ? n : 1; t <= n; t++) {
        copy = rollout[t];
        forward(&copy, &target);
        int action = option.method == ONE_STEP_SARSA ? copy.action : greedy(&copy);
        rollout[t].value = copy.policy[action];
    }
}

// a3c_pong.lambda_returns of the rollout's n steps; rollout[n] is the state after them.
static void find_returns(const Step *rollout, int n, int terminal, float *returns) {
    double of_method[] = {option.gae_lambda, 0, 0, 1};
    float next = 0;
    for (int t = n - 1; t >= 0; t--) {
        int last = t == n - 1;
        float reward = rollout[t].reward;
        if (last && terminal && reward <= 0 && option.lost_game_reward != 0)
            reward = option.lost_game_reward;
        double lambda = last ? 0 : of_method[(int)option.method];
        double ahead = (1 - lambda) * rollout[t + 1].value + lambda * next;
        int end = (option.cut_at_points && reward != 0) || (last && terminal);
        returns[t] = next = end ? reward : reward + option.gamma * ahead;
    }
}

// The losses' gradients by a step's outputs, the value's last: (G - V) ** 2, and
// -log p(a) td - beta * entropy with entropy = -sum p log(p + 1e-5), which is returned.
static double output_gradients(const Step *step, float td, double beta, float *by_output) {
    const float *p = step->policy;
    double entropy = 0, mean_slope = 0, slope[ACTIONS];  // of the entropy by each probability
    for (int a = 0; a < ACTIONS; a++) {
        double log_p = log(p[a] + 1e-5);
        entropy -= p[a] * log_p;
        slope[a] = -(log_p + p[a] / (p[a] + 1e-5));
        mean_slope += p[a] * slope[a];
    }
    for (int a = 0; a < ACTIONS; a++)
        by_output[a] = (p[a] - (a == step->action)) * td -
                       beta * p[a] * (slope[a] - mean_slope);
    by_output[ACTIONS] = -2 * td;
    return entropy;
}

// The same for a Q method: (y - Q(s, a)) ** 2.
static void q_gradients(const Step *step, float y, float *by_output) {
    memset(by_output, 0, (ACTIONS + 1) * sizeof(float));
    by_output[step->action] = -2 * (y - step->policy[step->action]);
}

// From the gradients by a step's outputs to those of heads and biases, and of the step's layer.
static void add_head_gradients(const Step *step, const float *heads, const float *by_output,
                               Gradients *to, float *by_layer) {
    const float *layer = step->layer;
    memset(by_layer, 0, UNITS * sizeof(float));
    for (int a = 0; a < ACTIONS; a++) {
        const float *head = heads + a * ACTOR;
        float *gradient = to->heads + a * ACTOR, g = by_output[a];
        for (int j = 0; j < ACTOR; j++) {
            by_layer[j] += g * head[j];
            gradient[j] += g * layer[j];
        }
        to->head_bias[a] += g;
    }
    const float *head = heads + ACTIONS * ACTOR;
    float by_value = by_output[ACTIONS];
    for (int j = 0; j < CRITIC; j++) {
        by_layer[ACTOR + j] = by_value * head[j];
        to->heads[ACTIONS * ACTOR + j] += by_value * layer[ACTOR + j];
    }
    to->head_bias[ACTIONS] += by_value;
    for (int j = 0; j < UNITS; j++) {
        if (layer[j] <= 0 || layer[j] >= 6) by_layer[j] = 0;
        to->bias[j] += by_layer[j];
    }
}

// From the gradients of the steps' layers to those of the kernel's rows: of an input's row, the sum
// over the steps that have the input.
static void find_row_gradients(const Step *rollout, int n, const float *by_layer, Gradients *to) {
    static int *row_of, *begin, steps[MAX_STEPS * MAX_INPUTS];
    if (!row_of) {
        row_of = malloc(inputs * sizeof(int));
        begin = malloc((inputs + 1) * sizeof(int));
        for (size_t i = 0; i < inputs; i++) row_of[i] = -1;
    }
    to->rows = 0;
    for (int t = 0; t < n; t++)
        for (int i = 0; i < rollout[t].count; i++) {
            int input = rollout[t].inputs[i];
            if (row_of[input] < 0) {
                begin[to->rows] = 0;
                to->input_of[to->rows] = input;
                row_of[input] = to->rows++;
            }
            begin[row_of[input]]++;
        }
    int sum = 0;
    for (int row = 0; row < to->rows; row++) begin[row] = sum += begin[row];
    begin[to->rows] = sum;
    for (int t = 0; t < n; t++)
        for (int i = 0; i < rollout[t].count; i++) steps[--begin[row_of[rollout[t].inputs[i]]]] = t;
    for (int row = 0; row < to->rows; row++) {
        float *gradient = to->kernel + (size_t)row * UNITS;
        memset(gradient, 0, UNITS * sizeof(float));
        add_rows(gradient, by_layer, steps + begin[row], begin[row + 1] - begin[row]);
        row_of[to->input_of[row]] = -1;
    }
}

static void scale(float *numbers, size_t n, float factor) {
    for (size_t i = 0; i < n; i++) numbers[i] *= factor;
}

static double lost = 1;  // (21 - recent score) / 42

// Compute the gradients of a worker's rollout; the sum of the policy's entropies.
static double learn(Worker *worker, double steps_done, Gradients *to) {
    static float returns[MAX_STEPS], *by_layer;
    if (!by_layer) by_layer = new_rows(MAX_STEPS);
    Step *rollout = worker->rollout;
    int n = worker->steps;
    double beta = option.beta * pow(lost, option.beta_power), entropy = 0;
    to->scale = option.anneal_steps ? 1 - fmin(1, steps_done / option.anneal_steps) : 1;
    to->scale *= pow(fmin(1, fmax(.01, lost / option.rate_falls_below)), option.rate_power);
    memset(to->bias, 0, sizeof to->bias);
    memset(to->heads, 0, sizeof to->heads);
    memset(to->head_bias, 0, sizeof to->head_bias);
    if (option.method != A3C) find_target_values(rollout, n);
    find_returns(rollout, n, worker->terminal, returns);
    for (int t = 0; t < n; t++) {
        float by_output[ACTIONS + 1], td = returns[t] - rollout[t].value;
        if (option.method == A3C)
            entropy += output_gradients(&rollout[t], td, beta, by_output);
        else
            q_gradients(&rollout[t], returns[t], by_output);
        if (option.mean) scale(by_output, ACTIONS + 1, 1.f / n);
        add_head_gradients(&rollout[t], worker->heads, by_output, to, by_layer + t * UNITS);
    }
    find_row_gradients(rollout, n, by_layer, to);
    return entropy;
}

// TensorFlow's RMSProp; missed: the factor of the updates in which the gradients were 0.
static void rmsprop(float *weights, float *mean_squares, const float *gradients, int n, float rate,
                    float missed) {
    float decay = option.rmsprop_decay, epsilon = option.rmsprop_epsilon;
    for (int i = 0; i < n; i++) {
        float g = gradients[i];
        mean_squares[i] = mean_squares[i] * missed * decay + (1 - decay) * g * g;
        weights[i] -= rate * g / sqrtf(mean_squares[i] + epsilon);
    }
}

// Let a moving mean come nearer to weights that have been the same for a while.
static void average(float *mean, const float *weights, int n, double times) {
    float old = pow(option.average, times);
    for (int i = 0; i < n; i++) mean[i] = weights[i] + old * (mean[i] - weights[i]);
}

static void average_all(void) {
    for (size_t i = 0; i < inputs; i++) {
        average(averaged.kernel + i * UNITS, global.kernel + i * UNITS, UNITS,
                updates - averaged_by[i]);
        averaged_by[i] = updates;
    }
}

// Update the global networks by gradients.
static void push(const Gradients *from) {
    Networks *g = &global, *s = &squares;
    float actor = (option.method == A3C ? option.lr_actor : option.lr_q) * from->scale;
    float critic = option.lr_critic * from->scale;
    updates++;
    for (int i = 0; i < from->rows; i++) {
        int input = from->input_of[i];
        size_t at = (size_t)input * UNITS;
        const float *gradient = from->kernel + (size_t)i * UNITS;
        float missed = powf(option.rmsprop_decay, updates - 1 - touched_by[input]);
        if (option.average) {
            average(averaged.kernel + at, g->kernel + at, UNITS, updates - 1 - averaged_by[input]);
            averaged_by[input] = updates - 1;
        }
        touched_by[input] = updates;
        rmsprop(g->kernel + at, s->kernel + at, gradient, ACTOR, actor, missed);
        at += ACTOR, gradient += ACTOR;
        if (option.method != A3C) continue;
        rmsprop(g->kernel + at, s->kernel + at, gradient, CRITIC, critic, missed);
    }
    int a = ACTOR, h = ACTIONS * ACTOR, o = ACTIONS;  // where the critic's begin
    rmsprop(g->bias, s->bias, from->bias, a, actor, 1);
    rmsprop(g->bias + a, s->bias + a, from->bias + a, CRITIC, critic, 1);
    rmsprop(g->heads, s->heads, from->heads, h, actor, 1);
    rmsprop(g->heads + h, s->heads + h, from->heads + h, CRITIC, critic, 1);
    rmsprop(g->head_bias, s->head_bias, from->head_bias, o, actor, 1);
    rmsprop(g->head_bias + o, s->head_bias + o, from->head_bias + o, 1, critic, 1);
    if (option.average) {
        average(averaged.bias, g->bias, UNITS, 1);
        average(averaged.heads, g->heads, HEADS, 1);
        average(averaged.head_bias, g->head_bias, ACTIONS + 1, 1);
    }
}

// --------------------------------------------------------------------------------------- the run

// Play `eval` games and print how they went; the run goes on as if they had not been played.
static void evaluate_with(const char *how, int (*choose)(const Step *), const char *when) {
    static Game game;
    static Step step;
    const Networks *net = option.average ? &averaged : &global;
    uint64_t randomness[4];
    memcpy(randomness, random_state, sizeof random_state);
    double sum = 0, sum_of_squares = 0;
    int worst = 21, lost_games = 0, games = option.eval;
    for (int i = 0; i < games; i++) {
        new_game(&game);
        for (int steps = 0; !game.over && steps < 40000; steps++) {
            look(&step, &game, net);
            play(&game, choose(&step));
        }
        sum += game.score, lost_games += game.score <= 0;
        sum_of_squares += game.score * game.score;
        if (game.score < worst) worst = game.score;
    }
    double mean = sum / games;
    double deviation = sqrt(fmax(0, sum_of_squares / games - mean * mean));
    printf("%s%s: %.2f %d, standard deviation %.1f, %d of %d not won\n", how, when, mean, worst,
           deviation, lost_games, games);
    fflush(stdout);
    memcpy(random_state, randomness, sizeof random_state);
}

static void evaluate(const char *when) {
    if (option.average) average_all();
    if (option.method == A3C) evaluate_with("sampled", sampled, when);
    evaluate_with("greedy", greedy, when);
}

// Read "epsilons=..." for the workers, or draw theirs as the paper does; 0: no numbers.
static int set_epsilons(Worker *workers, int count, const char *text) {
    const char *numbers = text;
    for (int i = 0; i < count; i++) {
        double u = uniform();
        workers[i].epsilon = u < .4 ? .1 : u < .7 ? .01 : .5;
        if (!text) continue;
        char *end;
        workers[i].epsilon = strtod(numbers, &end);
        if (end == numbers || (*end && *end != ',')) return 0;
        numbers = *end ? end + 1 : text;
    }
    return 1;
}

// Whether a multiple of a period lies between two counts of steps; no period, 0: no.
static int passed(double before, double after, double period) {
    return period > 0 && floor(before / period) < floor(after / period);
}

int main(int count, char **arguments) {
    const char *from = NULL, *epsilons = NULL;
    for (int i = 1; i < count; i++) {
        if (!strncmp(arguments[i], "from=", 5)) {
            from = arguments[i] + 5;
            continue;
        }
        if (!strncmp(arguments[i], "epsilons=", 9)) {
            epsilons = arguments[i] + 9;
            continue;
        }
        char *equals = strchr(arguments[i], '='), *end = equals;
        double number = equals ? strtod(equals + 1, &end) : 0;
        if (equals) *equals = 0;
        if (!equals || end == equals + 1 || *end || !set_option(arguments[i], number)) {
            fprintf(stderr, "a3c: no such option: %s%s%s\n", arguments[i], equals ? "=" : "",
                    equals ? equals + 1 : "");
            return 2;
        }
    }
    if (option.global_iteration_update < 1 || option.global_iteration_update > MAX_STEPS || option.frames < 1 ||
        option.frames > MAX_FRAMES || option.workers < 1 || option.method < A3C ||
        option.method > N_STEP_Q) {
        fprintf(stderr,
                "a3c: global_iteration_update is 1 to %d, frames 1 to %d, workers 1 or more, method 0 to "
                "3\n", MAX_STEPS, MAX_FRAMES);
        return 2;
    }
    seed_randomness(option.seed * 7919 + 17);
    new_networks();
    long steps_before = 0;
    if (from && !read_state(from, &steps_before)) {
        fprintf(stderr, "a3c: no state of such networks: %s\n", from);
        return 2;
    }
    if (option.average) copy_networks(&averaged, &global);
    int count_of_workers = option.workers, lag = fmin(option.lag, count_of_workers - 1);
    Worker *workers = new_workers(count_of_workers);
    if (!set_epsilons(workers, option.method == A3C ? 0 : count_of_workers, epsilons)) {
        fprintf(stderr, "a3c: no numbers: epsilons=%s\n", epsilons);
        return 2;
    }
    if (option.steps <= steps_before) return 0;
    Gradients *pending = zeros(lag + 1, sizeof(Gradients));
    for (int i = 0; i <= lag; i++) new_gradients(&pending[i]);
    for (int i = 0; i < count_of_workers; i++) {
        new_game(&workers[i].game);
        play_rollout(&workers[i], steps_before);
    }
    if (option.method != A3C) refresh_target();
    double done = steps_before, entropy = 0, since = 0, score = 0;
    double next_line = (floor(done / option.every) + 1) * option.every;
    int games = 0;
    for (long i = 0; done < option.steps; i++) {
        Worker *worker = &workers[i % count_of_workers];
        int steps = worker->steps, over = worker->game.over, game_score = worker->game.score;
        if (option.pull) pull(worker);
        entropy += learn(worker, done, &pending[i % (lag + 1)]);
        if (option.pull == 1) play_rollout(worker, done);
        if (i >= lag) {
            push(&pending[(i - lag) % (lag + 1)]);
            if (option.pull != 1) play_rollout(&workers[(i - lag) % count_of_workers], done);
        }
        double before = done;
        done += steps, since += steps;
        if (option.method != A3C && passed(before, done, option.target_steps)) refresh_target();
        if (over) {
            score = games++ ? .99 * score + .01 * game_score : game_score;
            lost = .9 * lost + .1 * (21 - game_score) / 42;
        }
        if (done >= next_line || done >= option.steps) {
            printf("%.0f %.3f %.3f %d\n", done, score, entropy / since, games);
            fflush(stdout);
            next_line += option.every, entropy = since = 0;
        }
        if (option.eval > 0 && done < option.steps && passed(before, done, option.eval_every)) {
            char when[40];
            snprintf(when, sizeof when, " after %.2f M", done / 1e6);
            evaluate(when);
        }
    }
    if (option.eval > 0) evaluate("");
    return 0;
}

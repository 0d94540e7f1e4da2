// The learner of `a3c_pong.py --preset rally`, written again beside Pong's compiled game (pong.h).
//
//     a3c [name=number ...] [from=FILE]
//
// The names are OPTIONS below, most of them those of settings.py; FILE is a state that run.py wrote.
//
// Workers take turns: each plays a rollout with its own copy of the weights, updates the global ones
// with its gradients and pulls them. So it plays without the others' latest updates, as where each
// has a core, and yet a seed gives the same run again. The networks, returns, losses and RMSProp are
// a3c_pong.py's; no game is cut off by a frame limit. Every `every` steps it prints a line "steps
// score entropy games": the moving true score, and the policy's mean entropy since the line before.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "pong.h"

// name, default: the preset's. 0 is never for anneal_steps, none for lost_game_reward; mean says whether the loss is the rollout's mean, 0 its sum. `eval` games are
// played at the end, with sampled and with greedy actions.
#define OPTIONS(X)                                                                            \
    X(seed, 1) X(steps, 10e6) X(workers, 2) X(frames, 2) X(steps_per_update, 120)             \
    X(gamma, 1) X(gae_lambda, .95) X(cut_at_points, 1)                                        \
    X(lost_game_reward, 0) X(mean, 0) X(beta, .02) X(beta_power, 3) X(lr_actor, 5e-4)         \
    X(lr_critic, 2e-3) X(anneal_steps, 0) X(rmsprop_decay, .975) X(rmsprop_epsilon, 5e-5)     \
    X(every, 250e3) X(eval, 0)
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

enum { ACTOR = 300, CRITIC = 100, UNITS = ACTOR + CRITIC, ACTIONS = 6 };
enum { HEADS = ACTIONS * ACTOR + CRITIC };  // weights of the actor's six outputs, then the critic's
enum { INPUT_SIZE = 80 * 80, MAX_FRAMES = 3, MAX_STEPS = 2000 };
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
    int last_action, over, score;
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
    game->last_action = game->over = game->score = 0;
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
    game->over = game->pong.over;
    game->score += reward;
    return reward;
}

// -------------------------------------------------------------------------------------- networks

typedef struct {  // a state, what the networks make of it, and what was done
    int count, inputs[MAX_INPUTS];
    float layer[UNITS], policy[ACTIONS], value;
    int action;
    float reward;
} Step;

typedef struct {    // weights of both networks
    float *kernel;  // [inputs][UNITS]; a row is an input's
    float bias[UNITS], heads[HEADS], head_bias[ACTIONS + 1];
    long pulled;  // a worker's: the updates there had been when it last pulled
} Networks;

// RMSProp's mean squares, of which the kernel's are decayed when their row is met again.
static Networks global, squares;
static long updates, *touched_by;  // an input -> the last update that had it
static size_t inputs;

// Gradients of an update; the kernel's only in the rows of the rollout's inputs.
static float *kernel_gradient, bias_gradient[UNITS];  // [slots][UNITS]
static float heads_gradient[HEADS], head_bias_gradient[ACTIONS + 1];
static int *slot_of, *input_of, slots;

static void new_networks(void) {
    inputs = (size_t)option.frames * INPUT_SIZE;
    size_t size = inputs * UNITS;
    global.kernel = malloc(size * sizeof(float));
    squares.kernel = malloc(size * sizeof(float));
    kernel_gradient = malloc(size * sizeof(float));
    touched_by = calloc(inputs, sizeof(long));
    slot_of = malloc(inputs * sizeof(int));
    input_of = malloc(inputs * sizeof(int));
    for (size_t i = 0; i < size; i++) global.kernel[i] = .1 * normal(), squares.kernel[i] = 1;
    for (int i = 0; i < HEADS; i++) {
        global.heads[i] = .1 * normal();
        squares.heads[i] = 1;
    }
    for (int i = 0; i < UNITS; i++) squares.bias[i] = 1;
    for (int i = 0; i <= ACTIONS; i++) squares.head_bias[i] = 1;
    for (size_t i = 0; i < inputs; i++) slot_of[i] = -1;
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

// Take over what has changed in the global networks since the last time; at first, all.
static void pull(Networks *local) {
    if (!local->kernel) {
        local->kernel = malloc(inputs * UNITS * sizeof(float));
        memcpy(local->kernel, global.kernel, inputs * UNITS * sizeof(float));
    }
    for (size_t i = 0; i < inputs; i++)
        if (touched_by[i] > local->pulled)
            memcpy(local->kernel + i * UNITS, global.kernel + i * UNITS, UNITS * sizeof(float));
    memcpy(local->bias, global.bias, sizeof global.bias);
    memcpy(local->heads, global.heads, sizeof global.heads);
    memcpy(local->head_bias, global.head_bias, sizeof global.head_bias);
    local->pulled = updates;
}

static void forward(Step *step, const Networks *net) {
    float *layer = step->layer, highest = -1e30f, sum = 0;
    memcpy(layer, net->bias, sizeof net->bias);
    for (int i = 0; i < step->count; i++) {
        const float *row = net->kernel + (size_t)step->inputs[i] * UNITS;
        for (int j = 0; j < UNITS; j++) layer[j] += row[j];
    }
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

static int greedy(const Step *step) {
    int best = 0;
    for (int a = 1; a < ACTIONS; a++)
        if (step->policy[a] > step->policy[best]) best = a;
    return best;
}

// -------------------------------------------------------------------------------------- learning

// a3c_pong.lambda_returns of the rollout's n steps; rollout[n] is the state after them.
static void find_returns(const Step *rollout, int n, int terminal, float *returns) {
    float next = 0;
    for (int t = n - 1; t >= 0; t--) {
        int last = t == n - 1;
        float reward = rollout[t].reward;
        if (last && terminal && reward <= 0 && option.lost_game_reward != 0)
            reward = option.lost_game_reward;
        double lambda = last ? 0 : option.gae_lambda;
        double ahead = (1 - lambda) * rollout[t + 1].value + lambda * next;
        int end = (option.cut_at_points && reward != 0) || (last && terminal);
        returns[t] = next = end ? reward : reward + option.gamma * ahead;
    }
}

// Add a step's gradients of the losses: (G - V) ** 2, and -log p(a) (G - V) - beta * entropy with
// entropy = -sum p log(p + 1e-5), which is given back.
static double add_gradients(const Step *step, const Networks *net, float advantage, double beta,
                            double weight) {
    const float *p = step->policy, *layer = step->layer;
    double entropy = 0, mean_slope = 0, slope[ACTIONS];  // of the entropy by each probability
    float layer_gradient[UNITS] = {0}, by_logit[ACTIONS];
    for (int a = 0; a < ACTIONS; a++) {
        double log_p = log(p[a] + 1e-5);
        entropy -= p[a] * log_p;
        slope[a] = -(log_p + p[a] / (p[a] + 1e-5));
        mean_slope += p[a] * slope[a];
    }
    for (int a = 0; a < ACTIONS; a++)
        by_logit[a] = weight * ((p[a] - (a == step->action)) * advantage -
                                beta * p[a] * (slope[a] - mean_slope));
    float by_value = weight * -2 * advantage;

    for (int a = 0; a < ACTIONS; a++) {
        const float *head = net->heads + a * ACTOR;
        float *gradient = heads_gradient + a * ACTOR, g = by_logit[a];
        for (int j = 0; j < ACTOR; j++) {
            layer_gradient[j] += g * head[j];
            gradient[j] += g * layer[j];
        }
        head_bias_gradient[a] += g;
    }
    const float *head = net->heads + ACTIONS * ACTOR;
    for (int j = 0; j < CRITIC; j++) {
        layer_gradient[ACTOR + j] = by_value * head[j];
        heads_gradient[ACTIONS * ACTOR + j] += by_value * layer[ACTOR + j];
    }
    head_bias_gradient[ACTIONS] += by_value;
    for (int j = 0; j < UNITS; j++) {
        if (layer[j] <= 0 || layer[j] >= 6) layer_gradient[j] = 0;
        bias_gradient[j] += layer_gradient[j];
    }
    for (int i = 0; i < step->count; i++) {
        int input = step->inputs[i];
        if (slot_of[input] < 0) {
            memset(kernel_gradient + (size_t)slots * UNITS, 0, UNITS * sizeof(float));
            input_of[slots] = input;
            slot_of[input] = slots++;
        }
        float *gradient = kernel_gradient + (size_t)slot_of[input] * UNITS;
        for (int j = 0; j < UNITS; j++) gradient[j] += layer_gradient[j];
    }
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

static double lost = 1;  // the share of points lost lately

// Learn from the n steps of a rollout; the sum of the policy's entropies.
static double update(const Step *rollout, int n, const Networks *net, int terminal,
                     double steps_done) {
    static float returns[MAX_STEPS];
    double beta = option.beta * pow(lost, option.beta_power), entropy = 0;
    double left = option.anneal_steps ? 1 - fmin(1, steps_done / option.anneal_steps) : 1;
    memset(bias_gradient, 0, sizeof bias_gradient);
    memset(heads_gradient, 0, sizeof heads_gradient);
    memset(head_bias_gradient, 0, sizeof head_bias_gradient);
    find_returns(rollout, n, terminal, returns);
    for (int t = 0; t < n; t++)
        entropy += add_gradients(&rollout[t], net, returns[t] - rollout[t].value, beta,
                                 option.mean ? 1.0 / n : 1);

    float actor = option.lr_actor * left, critic = option.lr_critic * left;
    updates++;
    for (int i = 0; i < slots; i++) {
        int input = input_of[i];
        float *row = global.kernel + (size_t)input * UNITS, *gradient = kernel_gradient + i * UNITS;
        float *mean_squares = squares.kernel + (size_t)input * UNITS;
        float missed = powf(option.rmsprop_decay, updates - 1 - touched_by[input]);
        touched_by[input] = updates;
        slot_of[input] = -1;
        rmsprop(row, mean_squares, gradient, ACTOR, actor, missed);
        rmsprop(row + ACTOR, mean_squares + ACTOR, gradient + ACTOR, CRITIC, critic, missed);
    }
    slots = 0;
    int a = ACTOR, h = ACTIONS * ACTOR, o = ACTIONS;  // where the critic's begin
    Networks *g = &global, *s = &squares;
    rmsprop(g->bias, s->bias, bias_gradient, a, actor, 1);
    rmsprop(g->bias + a, s->bias + a, bias_gradient + a, CRITIC, critic, 1);
    rmsprop(g->heads, s->heads, heads_gradient, h, actor, 1);
    rmsprop(g->heads + h, s->heads + h, heads_gradient + h, CRITIC, critic, 1);
    rmsprop(g->head_bias, s->head_bias, head_bias_gradient, o, actor, 1);
    rmsprop(g->head_bias + o, s->head_bias + o, head_bias_gradient + o, 1, critic, 1);
    return entropy;
}

// --------------------------------------------------------------------------------------- the run

static void evaluate(const char *how, int (*choose)(const Step *)) {
    static Game game;
    static Step step;
    double sum = 0, sum_of_squares = 0;
    int wins = 0, games = option.eval;
    for (int i = 0; i < games; i++) {
        new_game(&game);
        for (int steps = 0; !game.over && steps < 40000; steps++) {
            look(&step, &game, &global);
            play(&game, choose(&step));
        }
        sum += game.score, wins += game.score > 0;
        sum_of_squares += game.score * game.score;
    }
    double mean = sum / games;
    double deviation = sqrt(fmax(0, sum_of_squares / games - mean * mean));
    printf("%s: mean %.2f, standard deviation %.1f, %d wins of %d\n", how, mean, deviation, wins,
           games);
}

typedef struct {
    Game game;
    Networks local;
    Step rollout[MAX_STEPS + 1];
} Worker;

// A worker's turn: play to its next multiple of steps_per_update or to the game's end, learn from
// it, pull; how many steps it was.
static int turn(Worker *worker, double steps_before, double *entropy) {
    Game *game = &worker->game;
    int period = option.steps_per_update, n = 0;
    int most = period - game->total_steps % period;
    for (; n < most && !game->over; n++) {
        Step *step = &worker->rollout[n];
        look(step, game, &worker->local);
        step->action = sampled(step);
        step->reward = play(game, step->action);
    }
    game->total_steps += n;
    look(&worker->rollout[n], game, &worker->local);
    *entropy += update(worker->rollout, n, &worker->local, game->over, steps_before + n);
    pull(&worker->local);
    return n;
}

int main(int count, char **arguments) {
    const char *from = NULL;
    for (int i = 1; i < count; i++) {
        if (!strncmp(arguments[i], "from=", 5)) {
            from = arguments[i] + 5;
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
    if (option.steps_per_update < 1 || option.steps_per_update > MAX_STEPS || option.frames < 1 ||
        option.frames > MAX_FRAMES || option.workers < 1) {
        fprintf(stderr,
                "a3c: steps_per_update is 1 to %d, frames 1 to %d, workers 1 or more\n", MAX_STEPS,
                MAX_FRAMES);
        return 2;
    }
    seed_randomness(option.seed * 7919 + 17);
    new_networks();
    long steps_before = 0;
    if (from && !read_state(from, &steps_before)) {
        fprintf(stderr, "a3c: no state of such networks: %s\n", from);
        return 2;
    }
    Worker *workers = calloc(option.workers, sizeof(Worker));
    for (int i = 0; i < option.workers; i++) {
        new_game(&workers[i].game);
        pull(&workers[i].local);
    }
    double done = steps_before, entropy = 0, since = 0, score = 0;
    double next_line = (floor(done / option.every) + 1) * option.every;
    int games = 0;
    for (long i = 0; done < option.steps; i++) {
        Worker *worker = &workers[i % (int)option.workers];
        Game *game = &worker->game;
        int n = turn(worker, done, &entropy);
        done += n, since += n;
        if (game->over) {
            score = games++ ? .99 * score + .01 * game->score : game->score;
            lost = .9 * lost + .1 * (21 - game->score) / 42;
            new_game(game);
        }
        if (done >= next_line || done >= option.steps) {
            printf("%.0f %.3f %.3f %d\n", done, score, entropy / since, games);
            fflush(stdout);
            next_line += option.every, entropy = since = 0;
        }
    }
    if (option.eval > 0) evaluate("sampled", sampled), evaluate("greedy", greedy);
    return 0;
}

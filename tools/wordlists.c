/* The lists are those of models/tasks.py, so that answers can be expected of the model; the unseen
 * wordings share none of their sentences with them. */
#include "tools/wordlists.h"

const char *const tkv_first_names[] = {
    "Ada",  "Ben",  "Cora", "Dan",  "Ella", "Finn", "Grace", "Hugh", "Iris", "Jack", "Kate",
    "Liam", "Mary", "Noah", "Olga", "Paul", "Rosa", "Sam",   "Tess", "Tom",  "Emma", "Fred",
    "Jane", "John", "Lucy", "Mark", "Nora", "Owen", "Ruth",  "Will", NULL};

const char *const tkv_last_names[] = {
    "Abbot",  "Baker",  "Carter", "Draper", "Ellis",  "Fisher", "Grant",  "Hunter",
    "Irwin",  "Jones",  "King",   "Lane",   "Mason",  "Norris", "Osborn", "Parker",
    "Quick",  "Reeve",  "Smith",  "Taylor", "Usher",  "Vane",   "Walker", "Young",
    "Archer", "Bishop", "Cooper", "Fuller", "Turner", "Porter", NULL};

const char *const tkv_things[] = {
    "river",   "candle",  "table",   "window",  "garden",  "letter",   "bridge",  "horse",
    "mirror",  "forest",  "hammer",  "basket",  "feather", "castle",   "ribbon",  "anchor",
    "pepper",  "lantern", "barrel",  "saddle",  "kettle",  "needle",   "pillow",  "button",
    "carpet",  "ladder",  "engine",  "violin",  "orange",  "butter",   "copper",  "marble",
    "silver",  "velvet",  "pocket",  "finger",  "shadow",  "winter",   "summer",  "morning",
    "evening", "doctor",  "captain", "soldier", "farmer",  "teacher",  "sailor",  "widow",
    "brother", "island",  "desert",  "meadow",  "valley",  "mountain", "village", "market",
    "church",  "prison",  "temple",  "harbour", "knife",   "spoon",    "bottle",  "glass",
    "paper",   "pencil",  "coffee",  "sugar",   "bread",   "apple",    "lemon",   "cherry",
    "flower",  "tree",    "stone",   "wheel",   "chain",   "sword",    "arrow",   "shield",
    "crown",   "ring",    "coin",    "purse",   "coat",    "hat",      "boot",    "glove",
    "shirt",   "dog",     "cat",     "bird",    "fish",    "sheep",    "wolf",    "fox",
    "bear",    "lion",    "eagle",   NULL};

static const char *const places[] = {"London", "Paris",  "Rome",   "Vienna", "Dublin",  "Berlin",
                                     "Boston", "Venice", "Athens", "Cairo",  "Lisbon",  "Madrid",
                                     "Oxford", "York",   "Naples", "Moscow", "Chester", "Geneva",
                                     "Canton", "Bombay", NULL};

static const char *const colours[] = {"red",    "blue",    "green",   "white",  "black",
                                      "brown",  "yellow",  "grey",    "purple", "golden",
                                      "silver", "scarlet", "crimson", NULL};

const struct tkv_wording tkv_number_wordings[] = {
    {"The number of %s is", "What is the number of %s? It is", NULL},
    {"%s lives in house", "In which house does %s live? In house", NULL},
    {"The ticket of %s had the number", "Which ticket had %s? Number", NULL},
    {"%s kept the secret code", "Say the secret code of %s:", NULL},
    {"They paid %s exactly", "How much was paid to %s? Exactly", NULL},
    {NULL, NULL, NULL},
};

const struct tkv_wording tkv_word_wordings[] = {
    {"%s was born in", "Where was %s born? In", places},
    {"The family of %s came from", "From which town came the family of %s? From", places},
    {"The favourite colour of %s is", "What is the favourite colour of %s? It is", colours},
    {"%s always wore", "Which colour did %s always wear? It was", colours},
    {"%s always carried a", "What did %s always carry? A", tkv_things},
    {"The present for %s was a", "What was the present for %s? A", tkv_things},
    {NULL, NULL, NULL},
};

const struct tkv_wording tkv_unseen_wordings[] = {
    {"The locker of %s opens with", "The locker of %s opens with", NULL},
    {"Telephone %s at", "Telephone %s at", NULL},
    {"On the ticket office door stood %s and", "On the ticket office door stood %s and", NULL},
    {"The ship of %s was called the", "The ship of %s was called the", tkv_things},
    {"%s hid all the money behind the", "%s hid all the money behind the", tkv_things},
    {NULL, NULL, NULL},
};

size_t tkv_words_count(const char *const *words)
{
    size_t n = 0;

    while (words[n])
        n++;
    return n;
}

size_t tkv_wordings_count(const struct tkv_wording *wordings)
{
    size_t n = 0;

    while (wordings[n].told)
        n++;
    return n;
}

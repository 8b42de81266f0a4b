/* tools/recall.h - `polymath eval recall`: what each kind of attention can see of what matters.
 *
 * For every task and length (recall_tasks.h) the same tokens go through the model with full
 * attention, with its own, and with a sliding window of blocks in its sparse layers.  Of the rows that say the answer, over all layers with sparse
 * attention and their KV heads:
 *
 *   visible   share of the evidence that lies in what a row and head see
 *   reached   share of the evidence that at least one layer and head of the row sees
 *   KL, top-1 how far the logits are from those of full attention, in nats, and how often both
 *             have the same first choice
 *   exact     answers of which every token is the first choice, given those before
 *
 * For a model without sparse layers a window's visibility is reckoned, and nothing run. */
#pragma once

/* argv[0] is the verb, argv[1] "recall".  Exit code: 0, 1 failed, 2 misused. */
int recall_main(int argc, char **argv);

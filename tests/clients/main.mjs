// main.mjs BIN_DIR MODEL_DIR [NAME-PART]... - what `make test-clients` runs.
import { runAll, startCluster } from './harness.mjs';
import './openai.mjs';
import './responses.mjs';
import './anthropic.mjs';
import './oracles.mjs';
import './dashboard.mjs';

const [bin, model, ...filter] = process.argv.slice(2);
const cluster = await startCluster(bin, model);
const failed = await runAll({ url: cluster.url, model }, filter).finally(cluster.stop);
process.exit(failed ? 1 : 0);

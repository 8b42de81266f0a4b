// harness.mjs - tests against a running cluster: registration, checks, the closing line.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

const tests = [];

// Registers a test; `run` gets {url} and fails by throwing.
export function test(name, run) {
    tests.push({ name, run });
}

const TEST_LIMIT_MS = 60_000;

async function withLimit(promise) {
    let timer;
    const limit = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`not over after ${TEST_LIMIT_MS} ms`)), TEST_LIMIT_MS);
    });
    return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}

// Runs all tests, prints the closing line, returns the number of failures.
export async function runAll(context, filter) {
    let passed = 0, failed = 0, skipped = 0;
    for (const { name, run } of tests) {
        if (filter.length && !filter.some((part) => name.includes(part))) {
            skipped++;
            continue;
        }
        const begin = performance.now();
        try {
            await withLimit(run(context));
            passed++;
            console.log(`pass  ${name}  ${((performance.now() - begin) / 1000).toFixed(2)} s`);
        } catch (error) {
            failed++;
            console.log(`FAIL  ${name}\n${error.stack ?? error}`);
        }
    }
    console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
    return failed;
}

// Starts `polymath up` with the demo model; resolves with {url, stop} when it is ready.
export function startCluster(bin, model) {
    const child = spawn(`${bin}/polymath`, ['up', '--model', model, '--experts', '2', '--port', '0'],
        { stdio: ['ignore', 'pipe', 'inherit'] });
    const over = new Promise((resolve) => child.once('exit', resolve));
    const stop = () => {
        child.kill('SIGINT');
        return over;
    };
    return new Promise((resolve, reject) => {
        over.then((code) => reject(new Error(`polymath up ended with ${code}`)));
        createInterface({ input: child.stdout }).on('line', (line) => {
            const ready = /^ready: (http\S+)/.exec(line);
            if (ready) resolve({ url: ready[1], stop });
        });
    });
}

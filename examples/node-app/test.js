'use strict';

const assert = require('node:assert');
const { answer } = require('./server.js');

assert.deepStrictEqual(answer('/in/2h'), { status: 200, body: '7200000\n' });
assert.strictEqual(answer('/in/nonsense').status, 404);
assert.strictEqual(answer('/').status, 404);
console.log('all right');

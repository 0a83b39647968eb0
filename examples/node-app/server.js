'use strict';

const http = require('node:http');
const ms = require('ms');

/** Answers `/in/2h` with the milliseconds of two hours. */
function answer(path) {
  const [, verb, text] = path.split('/');
  const value = verb === 'in' && text ? ms(decodeURIComponent(text)) : undefined;
  return value === undefined ? { status: 404, body: 'not found\n' } : { status: 200, body: `${value}\n` };
}

if (require.main === module) {
  http
    .createServer((request, response) => {
      const { status, body } = answer(request.url);
      response.writeHead(status, { 'content-type': 'text/plain' }).end(body);
    })
    .listen(3000);
}

module.exports = { answer };

// Shows /openapi.json as a page: routes, parameters, bodies, answers, problem codes, and every example of it.
// Knows the part of OpenAPI 3.1 that the server uses, and nothing else. Asks nobody but the server it came from.

const SHOWN_AT = /http:\/\/localhost:8000|ws:\/\/localhost:8000/g; // where the examples are; the reader may be elsewhere

/** @param {string} name @param {Object<string, unknown>} [properties] @param {...(Node|string)} children */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Text in which `code` is marked. @param {string} text */
function prose(text) {
  return text.split('`').map((part, index) => (index % 2 ? element('code', {}, part) : part));
}

const anchor = (method, path) => `${method}-${path}`.replace(/[^A-Za-z0-9]+/g, '-').replace(/-$/, '');
const nameOf = (reference) => reference.split('/').at(-1);

/** A schema in a few words, with links to those that have a name. @returns {(Node|string)[]} */
function typeOf(schema) {
  if (!schema || Object.keys(schema).length === 0) return ['any'];
  if (schema.$ref) return [element('a', { href: `#schema-${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  if ('const' in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return schema.enum.flatMap((value, index) => [index ? ' | ' : '', JSON.stringify(value)]);
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return [...either.flatMap((one, index) => [index ? ' | ' : '', ...typeOf(one)]), limits(schema)];
  if (schema.type === 'array') return ['list of ', ...typeOf(schema.items), limits(schema)];
  return [schema.type ?? 'any', limits(schema)];
}

/** What a value must keep to besides its type, as " (…)"; "" for nothing. */
function limits(schema) {
  const { minimum, maximum, minLength, maxLength, maxItems, contentSchema } = schema;
  const said = [schema.format ?? schema.contentEncoding];
  if (minimum !== undefined || maximum !== undefined) said.push(`${minimum ?? '…'} to ${maximum ?? '…'}`);
  if (maxLength !== undefined) said.push(`${minLength ?? 0} to ${maxLength.toLocaleString('en')} characters`);
  if (maxItems !== undefined) said.push(`at most ${maxItems}`);
  if (contentSchema) said.push(`JSON: ${nameOf(contentSchema.$ref)}`);
  if ('default' in schema && schema.default !== null) said.push(`else ${JSON.stringify(schema.default)}`);
  const text = said.filter(Boolean).join(', ');
  return text && ` (${text})`;
}

function table(heads, rows) {
  const row = (cell, cells) => element('tr', {}, ...cells.map((c) => element(cell, {}, ...[c].flat())));
  const body = element('tbody', {}, ...rows.map((cells) => row('td', cells)));
  return element('div', { className: 'table', tabIndex: 0 }, element('table', {}, element('thead', {}, row('th', heads)), body));
}

function parameters(operation) {
  if (!operation.parameters?.length) return [];
  const rows = operation.parameters.map((one) => [
    element('code', {}, one.name),
    `${one.in}${one.required ? ', required' : ''}`,
    typeOf(one.schema),
    prose(one.description ?? ''),
  ]);
  return [element('h3', {}, 'Parameters'), table(['Name', 'In', 'Type', 'Meaning'], rows)];
}

function requestBody(operation) {
  const { content = {}, description = '' } = operation.requestBody ?? {};
  return Object.entries(content).flatMap(([media, { schema }]) => [
    element('h3', {}, 'Request body'),
    element('p', {}, element('code', {}, media), ': ', ...typeOf(schema), description && `. ${description}`),
  ]);
}

/** Who may call. */
function security(operation, schemes) {
  const names = (operation.security ?? []).flatMap((one) => Object.keys(one));
  return names.map((name) => {
    const { scheme, name: field, in: place, description = '' } = schemes[name];
    const what = scheme ? 'Authorization: Bearer' : `${field} (${place})`;
    return element('p', {}, 'Proof: ', element('code', {}, what), '. ', ...prose(description));
  });
}

function answers(operation, codes) {
  const own = Object.entries(operation.responses).filter(([, answer]) => !answer.$ref);
  const rows = own.map(([status, { description, content = {}, headers = {} }]) => [
    element('code', {}, status),
    Object.entries(content).flatMap(([media, { schema }], index) => [
      index ? ', ' : '',
      ...(schema?.$ref ? typeOf(schema) : [element('code', {}, media)]),
    ]),
    [...meaning(description, content, codes), ...headersOf(headers)],
  ]);
  return [element('h3', {}, 'Answers'), table(['Status', 'Body', 'Meaning'], rows), ...common(operation, codes)];
}

/** Of a problem each code with its title, else the description. */
function meaning(description, content, codes) {
  const known = content['application/problem+json']?.schema.properties.code.enum;
  if (!known) return prose(description);
  return known.map((code) => element('span', { className: 'line' }, problemLink(code), ` ${codes[code].title}`));
}

const problemLink = (code) => element('a', { href: `#problem-${code}` }, element('code', {}, code));

function headersOf(headers) {
  const names = Object.keys(headers).filter((name) => name !== 'X-Request-Id');
  return names.length ? [element('span', { className: 'line hint' }, `With ${names.join(', ')}`)] : [];
}

/** What any route may answer with is told in one line. */
function common(operation, codes) {
  const shared = Object.values(operation.responses).filter((answer) => answer.$ref);
  const links = shared.map((answer) => nameOf(answer.$ref)).filter((code) => codes[code]);
  if (!links.length) return [];
  return [element('p', { className: 'hint' }, 'As any route: ', ...links.flatMap((code) => [problemLink(code), ' ']))];
}

/** Every example: the line that asks, and the answer to it. */
function examples(operation) {
  const samples = operation['x-codeSamples'] ?? [];
  if (!samples.length) return [];
  return [element('h3', {}, samples.length > 1 ? 'Examples' : 'Example'), ...samples.flatMap((one) => example(one, operation))];
}

function example({ label, source, 'x-example': name, 'x-status': status }, operation) {
  const text = source.replaceAll(SHOWN_AT, (address) => location.origin.replace(/^http/, address.startsWith('ws') ? 'ws' : 'http'));
  const button = element('button', { type: 'button', ariaLabel: `Copy: ${label}` }, 'Copy');
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  });
  const line = element('div', { className: 'example' }, element('pre', { tabIndex: 0 }, text), button);
  const content = Object.values(operation.responses[status]?.content ?? {});
  const shown = content.map((one) => one.examples?.[name]?.value).find((value) => value !== undefined);
  const answer = shown === undefined ? [] : [answerOf(status, shown)];
  return [element('p', { className: 'label' }, label), line, ...answer];
}

function answerOf(status, value) {
  const text = typeof value === 'string' ? value : JSON.stringify(value, null, 2);
  const summary = element('summary', {}, `The answer: ${status}`);
  return element('details', { className: 'example' }, summary, element('pre', { tabIndex: 0 }, text));
}

/** The types of what goes over a stream or a socket, which OpenAPI has no place for. */
function streamed(operation) {
  const told = { 'x-itemSchema': 'Each event is a', 'x-receives': 'You send a', 'x-sends': 'The server sends a' };
  const lines = Object.entries(told).filter(([key]) => operation[key]);
  return lines.map(([key, text]) => element('p', {}, `${text} `, ...typeOf(operation[key]), '.'));
}

function route(id, title, operation, { codes, schemes }) {
  return element(
    'section',
    { id, className: 'route' },
    element('h2', {}, ...title),
    element('p', {}, ...prose(operation.summary ?? '')),
    ...(operation.description ?? '').split('\n\n').filter(Boolean).map((text) => element('p', {}, ...prose(text))),
    ...streamed(operation),
    ...security(operation, schemes),
    ...parameters(operation),
    ...requestBody(operation),
    ...answers(operation, codes),
    ...examples(operation),
  );
}

const titleOf = (method, path) => [element('span', { className: 'method' }, method.toUpperCase()), ' ', element('code', {}, path)];

function shape(name, schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([property, type]) => [
    element('code', {}, property),
    typeOf(type),
    [...prose(type.description ?? ''), required.has(property) ? '' : element('span', { className: 'hint' }, ' Optional.')],
  ]);
  const either = (schema.oneOf ?? []).map((one) => [
    one.$ref ? typeOf(one) : element('code', {}, one.properties.event.const),
    one.$ref ? '' : typeOf(one.properties.data.contentSchema),
    prose(one.description ?? ''),
  ]);
  return element(
    'section',
    { id: `schema-${name}`, className: 'route' },
    element('h2', {}, name),
    element('p', {}, ...prose(schema.description ?? '')),
    ...(rows.length ? [table(['Member', 'Type', 'Meaning'], rows)] : []),
    ...(either.length ? [table(['One of', 'Its data', 'Meaning'], either)] : []),
  );
}

function problems(codes, operations) {
  const where = (code) =>
    operations
      .filter(([, , { responses }]) => Object.values(responses).some((one) => answersWith(one, code)))
      .flatMap(([method, path], index) => [
        index ? ', ' : '',
        element('a', { href: `#${anchor(method, path)}` }, `${method.toUpperCase()} ${path}`),
      ]);
  const rows = Object.entries(codes).map(([code, { status, title }]) => [
    element('code', { id: `problem-${code}` }, code),
    String(status),
    title,
    where(code),
  ]);
  const about = 'Every answer that is not a success is `application/problem+json` (RFC 9457) with one of these codes.';
  const content = [element('h2', {}, 'Problems'), element('p', {}, ...prose(about))];
  const list = table(['Code', 'Status', 'Title', 'Where'], rows);
  return element('section', { id: 'problems', className: 'route' }, ...content, list);
}

const answersWith = (response, code) =>
  response.content?.['application/problem+json']?.schema.properties.code.enum.includes(code) ?? false;

function contents(operations, schemas, tags, hooks) {
  const link = (href, ...children) => element('li', {}, element('a', { href }, ...children));
  const part = (title, items) => [element('h2', {}, title), element('ul', {}, ...items)];
  const routes = tags.flatMap(({ name }) =>
    part(
      name,
      operations
        .filter(([, , operation]) => operation.tags.includes(name))
        .map(([method, path]) => link(`#${anchor(method, path)}`, ...titleOf(method, path))),
    ),
  );
  const shapes = Object.keys(schemas).map((name) => link(`#schema-${name}`, name));
  const sent = Object.keys(hooks).map((name) => link(`#webhook-${name}`, `To your generator: ${name}`));
  const more = part('More', [...sent, link('#problems', 'Problems')]);
  return element('details', {}, element('summary', {}, 'Contents'), ...routes, ...more, ...part('Types', shapes));
}

async function show() {
  const main = document.querySelector('main');
  const about = document.querySelector('#about');
  try {
    const response = await fetch('/openapi.json');
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const description = await response.json();
    const { schemas = {}, securitySchemes: schemes = {} } = description.components ?? {};
    const codes = description.info['x-problem-codes'] ?? {};
    const hooks = description.webhooks ?? {};
    const operations = Object.entries(description.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => [method, path, operation]),
    );
    const known = { codes, schemes };
    about.replaceWith(
      ...description.info.description.split('\n\n').map((text) => element('p', {}, ...prose(text))),
      element('p', { className: 'hint' }, `Version ${description.info.version}.`),
    );
    const list = contents(operations, schemas, description.tags, hooks);
    list.open = matchMedia('(width >= 58rem)').matches;
    document.querySelector('.contents').append(list);
    main.append(
      ...operations.map(([method, path, one]) => route(anchor(method, path), titleOf(method, path), one, known)),
      ...Object.entries(hooks).map(([name, { post }]) => route(`webhook-${name}`, [`To your generator: ${name}`], post, known)),
      problems(codes, operations),
      ...Object.entries(schemas).map(([name, schema]) => shape(name, schema)),
    );
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  } catch (error) {
    about.textContent = `The description cannot be read: ${error.message}`;
  }
  main.removeAttribute('aria-busy');
}

show();

// The page asks the metadata server for the state and draws it. Everything that comes from there
// becomes text nodes, never markup.
'use strict';

const $ = id => document.getElementById(id);
const state = { doc: null, failed: '', timer: 0, turn: 0 };

// el makes an element: el('td', {class: 'n'}, 'text', child, ...).
function el(name, attrs = {}, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

function svg(name, attrs = {}, ...children) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

function fill(id, ...children) { $(id).replaceChildren(...children); }

// Numbers for people.
function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit++; }
  return (unit === 0 || n >= 100 ? n.toFixed(0) : n.toFixed(1)) + ' ' + units[unit];
}
function count(n) {
  if (n >= 1e6) return (n / 1e6).toFixed(1) + ' M';
  if (n >= 1e4) return (n / 1e3).toFixed(1) + ' k';
  return n >= 10 || Number.isInteger(n) ? n.toFixed(0) : n.toFixed(1);
}
// whole is for numbers of which the last digit matters.
function whole(n) { return n.toLocaleString('en'); }
function ms(n) { return n < 0 ? '–' : (n < 10 ? n.toFixed(2) : n.toFixed(0)) + ' ms'; }
function duration(s) {
  if (s < 90) return Math.ceil(s) + ' s';
  if (s < 5400) return Math.round(s / 60) + ' min';
  return s < 172800 ? (s / 3600).toFixed(1) + ' h' : Math.round(s / 86400) + ' days';
}
function clock(at) { return new Date(at).toLocaleTimeString([], { hour12: false }); }
function share(part, whole) { return whole > 0 ? Math.min(100, 100 * part / whole) : 0; }

// bar draws parts of a whole: [[number, class], ...]. The text beside it says the same.
function bar(parts, whole) {
  const b = el('div', { class: 'bar', 'aria-hidden': 'true' });
  for (const [n, kind] of parts) {
    if (n <= 0) continue;
    const i = el('i', { class: kind });
    i.style.width = Math.max(1, share(n, whole)) + '%';
    b.append(i);
  }
  return b;
}

function header(doc) {
  $('cluster').textContent = doc.cluster;
  document.title = doc.cluster + (doc.stat ? ': ' + doc.stat.health : '') + ' – pstorage';
  const choice = $('clusters');
  choice.hidden = doc.clusters.length < 2;
  if (choice.options.length !== doc.clusters.length) {
    choice.replaceChildren(...doc.clusters.map(c => el('option', { value: c }, c)));
    choice.value = doc.cluster;
  }
}

const signs = { healthy: '✓ ', degraded: '! ', critical: '✕ ' };

function health(doc) {
  const known = doc.stat ? doc.stat.health : 'unknown';
  const text = (signs[known] || '') + known;
  if ($('health').textContent !== text) {
    fill('health', el('span', { class: 'badge ' + (signs[known] ? known : 'unknown') }, text));
  }
  const why = doc.stat ? doc.stat.reasons : [];
  $('reasons').hidden = why.length === 0;
  $('reasons').className = known;
  fill('reasons', ...why.map(r => el('li', {}, r)));
}

function tiles(d, doc) {
  const s = d.space, used = s.logical_total - s.logical_free;
  fill('space', bytes(s.logical_free) + ' free ', el('small', {}, 'of ' + bytes(s.logical_total)));
  fill('spacebar', bar([[used, share(used, s.logical_total) > 90 ? 'bad' : 'used']], s.logical_total));
  $('spacemore').textContent = bytes(s.used) + ' of ' + bytes(s.total) + ' on disks' +
    (s.limit ? '; limit ' + bytes(s.limit) + ', ' + bytes(s.allocated) + ' taken' : '');

  const c = d.chunks, bad = c.below_minimum, warn = Math.max(0, c.degraded - bad);
  fill('chunks', whole(c.total) + ' ', el('small', {}, whole(c.healthy) + ' healthy'));
  fill('chunkbar', bar([[c.healthy, 'good'], [warn, 'warn'], [bad, 'bad']], c.total));
  const wrong = [[c.degraded, 'degraded'], [c.urgent, 'with one copy left'],
    [c.below_minimum, 'below the minimum: writes wait'], [c.offline, 'offline'],
    [c.fallback, 'in a finer failure domain than asked for']]
    .filter(([n]) => n > 0).map(([n, what]) => whole(n) + ' ' + what);
  $('chunkmore').textContent = wrong.join('; ') || whole(d.files) + ' files';

  const r = d.recovery;
  const busy = r.copying + d.moves.active;
  fill('recovery', c.degraded > 0 ? whole(c.degraded) + ' to restore' : busy > 0 ? 'moving' : 'none');
  const words = [[busy, 'being copied'], [r.queued, 'queued'], [r.waiting, 'wait for a server to come back'],
    [r.no_place, 'without a place'], [r.excluding, 'being excluded'], [r.again, 'tried again'],
    [d.moves.drain, 'leave a server'], [d.moves.balance, 'balance']]
    .filter(([n]) => n > 0).map(([n, what]) => count(n) + ' ' + what);
  if (doc.recover_rate > 0) words.unshift(doc.recover_rate.toFixed(1) + ' chunks/s');
  if (doc.recover_left > 0) words.push('about ' + duration(doc.recover_left) + ' left');
  $('recoverymore').textContent = words.join('; ') || 'every chunk has all its copies';

  const p = doc.points[doc.points.length - 1];
  fill('io', count(p.reads + p.writes) + ' ', el('small', {}, 'operations/s'));
  $('iomore').textContent = count(p.reads) + ' reads/s, ' + bytes(p.read_bytes) + '/s; ' +
    count(p.writes) + ' writes/s (each on every copy), ' + bytes(p.write_bytes) + '/s';
}

// A chart: two lines over the last quarter of an hour.
const charts = [
  { title: 'Operations per second', lines: [['reads', 'reads'], ['writes', 'writes']], show: count },
  { title: 'Bytes per second', lines: [['read_bytes', 'read'], ['write_bytes', 'written']], show: bytes },
  { title: 'Read latency of the disks', lines: [['read_mid', 'median'], ['read_worst', 'slowest']], show: ms },
  { title: 'Write latency of the journals', lines: [['log_mid', 'median'], ['log_worst', 'slowest']], show: ms },
];
const W = 320, H = 130, left = 54, bottom = 18, span = 15 * 60 * 1000;

function chart({ title, lines, show }, points, now) {
  const top = Math.max(1e-9, ...points.flatMap(p => lines.map(([key]) => p[key])));
  const x = at => left + (W - left - 4) * Math.max(0, 1 - (now - at) / span);
  const y = v => 6 + (H - bottom - 6) * (1 - v / (top * 1.08));
  const plot = svg('svg', { viewBox: `0 0 ${W} ${H}`, 'aria-hidden': 'true' });
  const round = top > 1e-9 ? [0, top / 2, top] : [0];
  for (const v of round) {
    plot.append(svg('line', { x1: left, x2: W - 4, y1: y(v), y2: y(v) }),
      svg('text', { x: left - 6, y: y(v) + 4, 'text-anchor': 'end' }, show(v)));
  }
  for (const min of [15, 10, 5, 0]) {
    const at = x(now - min * 60000);
    plot.append(svg('text', { x: at, y: H - 3, 'text-anchor': min === 15 ? 'start' : min ? 'middle' : 'end' },
      min ? '−' + min + ' min' : 'now'));
  }
  lines.forEach(([key], i) => {
    let path = '', pen = false;
    for (const p of points) {
      if (p[key] < 0) { pen = false; continue; }
      path += (pen ? 'L' : 'M') + x(p.at_ms).toFixed(1) + ' ' + y(p[key]).toFixed(1);
      pen = true;
    }
    plot.append(svg('path', { class: i ? 'two' : 'one', d: path }));
  });
  const last = points[points.length - 1];
  const caption = el('figcaption', {}, el('b', {}, title),
    ...lines.map(([key, name], i) => el('span', { class: 'key ' + (i ? 'two' : 'one') },
      name + ' ' + show(last[key]))));
  return el('figure', { class: 'chart' }, caption, plot);
}

// table fills a table: columns are [title, class], rows lists of cells, text or elements.
function table(id, caption, columns, rows) {
  const cell = (name, i, more) => el(name, { ...(columns[i][1] ? { class: columns[i][1] } : {}), ...more });
  const head = el('tr', {}, ...columns.map(([title], i) => {
    const th = cell('th', i, { scope: 'col' });
    th.append(title);
    return th;
  }));
  const body = rows.map(row => el('tr', {}, ...row.map((content, i) => {
    const td = cell('td', i, {});
    td.append(content);
    return td;
  })));
  if (rows.length === 0) body.push(el('tr', {}, el('td', { colspan: columns.length }, 'none')));
  fill(id, el('caption', { class: 'sr' }, caption), el('thead', {}, head), el('tbody', {}, ...body));
}

const kinds = { active: 'good', leader: 'good', member: 'good', inactive: 'warn', ill: 'warn',
  releasing: 'warn', joining: 'warn', warning: 'warn', dropped: '', info: '' };

function status(word) {
  const kind = word in kinds ? kinds[word] : 'bad';
  return el('span', kind ? { class: 's-' + kind } : {}, word);
}

function disks(d) {
  const wait = ns => ns > 0 ? ms(ns / 1e6) : '–';
  table('cs', 'Chunk servers, one per disk',
    [['CS', 'n'], ['Status'], ['Host'], ['Directory'], ['Used'], ['Of', 'n'], ['Chunks', 'n'], ['Reads/s', 'n'],
      ['Writes/s', 'n'], ['Read', 'n'], ['Journal write', 'n'], ['Journal full', 'n'], ['Bad checksums', 'n'],
      ['Remarks', 'wide']],
    d.cs.filter(c => c.status !== 'dropped').map(c => {
      const s = c.stats || {};
      const used = el('span', {}, bytes(c.used), bar([[c.used, 'used']], c.capacity));
      const drain = c.drain ? c.drain.left + ' chunks left' +
        (c.drain.eta_ms > 0 ? ', about ' + duration(c.drain.eta_ms / 1000) : '') : '';
      return [String(c.id), status(c.status), c.host, c.path, used, bytes(c.capacity), count(c.chunks),
        count(Math.round(c.read_rate)), count(Math.round(c.write_rate)), wait(s.ReadWaitNs), wait(s.LogWaitNs),
        s.LogSize ? share(s.LogUsed, s.LogSize).toFixed(0) + ' %' : '–', s.CRCErrors ? String(s.CRCErrors) : '0',
        [c.failed, drain, c.status === 'active' ? '' : c.reason].filter(Boolean).join('; ')];
    }));
  table('mds', 'Metadata servers', [['MDS'], ['Address'], ['Role']], d.mds.map(m =>
    [m.id, m.addr, status(m.leader ? 'leader' : m.down ? 'down' : m.voter ? 'member' : 'joining')]));
}

function events(list) {
  const least = Number($('severity').value), order = ['info', 'warning', 'fault'];
  table('events', 'Events, the newest first',
    [['Time'], ['Severity'], ['Source'], ['Code'], ['Message', 'wide']],
    list.filter(e => order.indexOf(e.severity) >= least).slice(0, 100).map(e =>
      [new Date(e.time_ns / 1e6).toLocaleString([], { hour12: false }), status(e.severity), e.source, e.code,
        e.message]));
}

function draw() {
  const doc = state.doc;
  const problem = state.failed || (doc && doc.error ? 'The metadata servers’ leader doesn’t answer: ' + doc.error : '');
  $('problem').hidden = !problem;
  if ($('problem').textContent !== problem) $('problem').textContent = problem;
  if (!doc) return;
  header(doc);
  health(doc);
  if (!doc.stat) return;
  const at = doc.points[doc.points.length - 1].at_ms;
  $('age').textContent = 'as of ' + clock(at);
  tiles(doc.stat, doc);
  fill('charts', ...charts.map(c => chart(c, doc.points, doc.now_ms)));
  disks(doc.stat);
  events(doc.events);
}

async function refresh() {
  clearTimeout(state.timer);
  const turn = ++state.turn;
  let doc = state.doc, failed = '';
  try {
    const name = $('clusters').value;
    const reply = await fetch('api/state' + (name ? '?cluster=' + encodeURIComponent(name) : ''));
    if (!reply.ok) throw new Error(await reply.text());
    doc = await reply.json();
  } catch (e) {
    failed = 'This metadata server doesn’t answer: ' + e.message;
  }
  if (turn !== state.turn) return; // another cluster was chosen meanwhile
  Object.assign(state, { doc, failed });
  // Before it is drawn: a page that can't draw one answer may draw the next one.
  state.timer = setTimeout(refresh, doc ? doc.ask_ms : 5000);
  draw();
}

$('severity').addEventListener('change', draw);
$('clusters').addEventListener('change', () => { state.doc = null; refresh(); });
refresh();

// Fills each card with what the platform said about the last answers of its function.

const HISTORY = 16
const AUTO_MS = 1000
const panel = document.getElementById('panel')

for (const card of document.querySelectorAll('.card')) start(card)

function start(card) {
  card.append(panel.content.cloneNode(true))
  const find = (selector) => card.querySelector(selector)
  const field = (name) => find(`[data-field="${name}"]`)
  const { path } = card.dataset
  const answer = find('.answer')
  const history = find('.history')
  const auto = find('.auto')
  let timer

  find('.reload').setAttribute('aria-label', `Reload ${path}`)
  auto.setAttribute('aria-label', `Reload ${path} every second`)
  find('.pragma').hidden = !('pragma' in card.dataset)

  // The browser's default mode on purpose: `no-store` and `reload` send Pragma: no-cache, and the platform obeys that.
  find('.reload').addEventListener('click', () => load('default'))
  find('.pragma').addEventListener('click', () => load('no-store'))
  auto.addEventListener('change', () => {
    clearTimeout(timer)
    // A screen reader is not to be told every second.
    answer.setAttribute('aria-live', auto.checked ? 'off' : 'polite')
    if (auto.checked) again()
  })

  async function again() {
    if (!document.hidden) await load('default')
    // Only if it is still wanted: the answer may have come after the toggle was switched off.
    clearTimeout(timer)
    if (auto.checked) timer = setTimeout(again, AUTO_MS)
  }

  async function load(cache) {
    card.setAttribute('aria-busy', 'true')
    const begun = performance.now()
    try {
      const response = await fetch(path, { cache })
      const body = (await response.text()).trim()
      const header = (name) => response.headers.get(name)
      show({
        state: response.ok ? (header('x-now-cache') ?? 'NONE') : `ERROR ${response.status}`,
        took: performance.now() - begun,
        body: body || '(empty)',
        age: header('age') === null ? '–' : `${header('age')} s`,
        id: header('x-now-id') ?? '–',
      })
    } catch (error) {
      show({ state: 'ERROR', took: performance.now() - begun, body: error.message, age: '–', id: '–' })
    }
    card.setAttribute('aria-busy', 'false')
  }

  function show({ state, took, body, age, id }) {
    const kind = state.split(' ')[0]
    field('state').textContent = state
    field('state').dataset.state = kind
    field('took').textContent = `${took < 10 ? took.toFixed(1) : Math.round(took)} ms`
    field('body').textContent = body
    field('age').textContent = age
    field('id').textContent = id

    const dot = document.createElement('li')
    dot.dataset.state = kind
    dot.textContent = kind[0]
    dot.title = `${state}, ${Math.round(took)} ms`
    dot.setAttribute('aria-label', dot.title)
    history.append(dot)
    while (history.children.length > HISTORY) history.firstChild.remove()
  }

  load('default')
}

// Slow on purpose. Only the very first visitor waits for it: afterwards everyone gets the copy at the edge at once,
// and a copy older than a second is renewed behind the visitor's back.
module.exports = async (req, res) => {
  await new Promise((resolve) => setTimeout(resolve, 400))
  res.setHeader('Cache-Control', 's-maxage=1, stale-while-revalidate')
  res.send(new Date())
}

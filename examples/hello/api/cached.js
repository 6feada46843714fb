// Rendered at most once in ten seconds; all other visitors get the copy at the edge.
module.exports = (req, res) => {
  res.setHeader('Cache-Control', 's-maxage=10')
  res.send(new Date())
}

// The file's name is the route: /api/users/ada arrives here with `req.query.name` of "ada".
module.exports = (req, res) => {
  res.setHeader('Content-Type', 'text/plain')
  res.send(`Hello, ${req.query.name}!\n`)
}

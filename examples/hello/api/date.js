module.exports = (req, res) => {
  res.send(new Date())
}

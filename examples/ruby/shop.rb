# frozen_string_literal: true

# The producing service: each line of its standard input is an order, written and published in one transaction.
#   {"orderId": "order-1", "step": 1}     with "fail": true it is rolled back
# DATABASE_URL
require_relative 'turnout'

OutOfStock = Class.new(StandardError)
connection = PG.connect(ENV.fetch('DATABASE_URL'))
$stdout.sync = true
$stdin.each_line do |line|
  order = JSON.parse(line)
  id = Turnout.transaction(connection) do |tx|
    tx.exec_params('insert into business (order_id, step) values ($1, $2)', order.values_at('orderId', 'step'))
    # The call to e-mail was here. Now it is the switchover's: by call or by event, as its stage says.
    published = Turnout.publish(tx, 'orders', 'orders.order-placed', 1, order['orderId'], order.slice('orderId', 'step'),
                                switchovers: ['order-email'])
    raise OutOfStock if order['fail']

    published
  end
  puts "published #{id}"
rescue OutOfStock
  puts 'published nothing'
end
